"""Accuracy within each class, against counts worked out by hand."""

import math

import numpy as np
import pytest

from rmt_jax.tasks.accuracy import TopK


def outputs(logits: list[list[float]], label: list[int], mask: list[bool]) -> dict[str, np.ndarray]:
    return {"logits": np.array(logits, np.float32), "label": np.array(label), "mask": np.array(mask)}


def test_confusion_counts_rows_of_labels_and_columns_of_predictions() -> None:
    metric = TopK(3)
    zero, one, two = [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]
    metric.add(outputs([zero, one, one, two], [0, 0, 0, 2], [True, True, True, False]))
    metric.add(outputs([zero, one], [0, 1], [True, True]))
    np.testing.assert_array_equal(metric.confusion, [[2, 2, 0], [0, 1, 0], [0, 0, 0]])
    assert metric.confusion.dtype == np.int64
    np.testing.assert_array_equal(metric.class_counts, [4, 1, 0])
    np.testing.assert_array_equal(metric.class_accuracy, [50, 100, np.nan])
    assert metric.compute()["mean_per_class"] == 75  # of the classes that have a picture
    assert metric.compute()["top1"] == 60


def test_nan_is_taken_for_no_class_but_counted() -> None:
    metric = TopK(2)
    metric.add(outputs([[math.nan, 1.0], [math.nan, math.nan], [1.0, 1.0]], [1, 0, 0], [True] * 3))
    np.testing.assert_array_equal(metric.confusion, [[1, 0], [0, 0]])
    np.testing.assert_array_equal(metric.class_counts, [2, 1])
    assert metric.compute()["top1"] == pytest.approx(100 / 3)
    assert metric.compute()["mean_per_class"] == 25
