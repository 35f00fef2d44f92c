"""Mean intersection over union against upstream's recorded numbers, and by hand."""

import numpy as np
import pytest

from rmt_jax.data.segmentation.labels import reduce_zero_label
from rmt_jax.tasks import MeanIoU
from tests.golden import golden


def test_recorded_pictures_give_upstreams_numbers() -> None:
    recorded = golden.expected("fn_miou")
    metric = MeanIoU(150)
    for stored, classes in zip(recorded["in/gt_raw_png_values"], recorded["in/pred"], strict=True):
        metric.add({"classes": classes, "label": reduce_zero_label(stored)})
    found = metric.compute()
    assert found["aAcc"] == pytest.approx(100 * float(recorded["aAcc"]), rel=1e-6)
    assert found["mIoU"] == pytest.approx(100 * float(recorded["mIoU"]), rel=1e-6)
    np.testing.assert_allclose(metric.class_iou, 100 * recorded["iou"], rtol=1e-6)
    np.testing.assert_allclose(metric.class_accuracy, 100 * recorded["acc"], rtol=1e-6)


def test_by_hand() -> None:
    metric = MeanIoU(3)
    metric.add({"classes": np.array([[0, 0, 1]]), "label": np.array([[0, 1, 1]], np.uint8)})
    metric.add({"classes": np.array([[1, 2]]), "label": np.array([[255, 0]], np.uint8)})
    assert metric.count == 2
    np.testing.assert_array_equal(metric.confusion, [[1, 0, 1], [1, 1, 0], [0, 0, 0]])
    np.testing.assert_allclose(metric.class_iou, [100 / 3, 50, 0])
    np.testing.assert_allclose(metric.class_accuracy, [50, 50, np.nan])
    assert metric.compute() == pytest.approx({"mIoU": 250 / 9, "aAcc": 50, "mAcc": 50})


def test_nothing_to_count_is_an_error() -> None:
    metric = MeanIoU(2)
    metric.add({"classes": np.zeros((2, 2), np.uint8), "label": np.full((2, 2), 255, np.uint8)})
    with pytest.raises(ValueError, match="No labelled pixel"):
        metric.compute()
    with pytest.raises(ValueError, match=r"predicted classes are \(1, 2\), the label map is \(2, 1\)"):
        metric.add({"classes": np.zeros((1, 2)), "label": np.zeros((2, 1), np.uint8)})
