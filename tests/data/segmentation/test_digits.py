"""The digits on photographs: complete, the same every time, labels on the notes."""

import logging
import pathlib

import numpy as np
import pytest
from sklearn.datasets import load_digits, load_sample_images

from rmt_jax.data import DataConfig, SegmentationDataConfig
from rmt_jax.data.digits import split_indices
from rmt_jax.data.segmentation import SegmentationSource, open_segmentation_source
from rmt_jax.data.segmentation.digits import PICTURES, SIZE, DigitsSegmentation, draw_picture
from rmt_jax.data.segmentation.labels import read_example


def open_split(directory: str, split: str, **segmentation: bool) -> SegmentationSource:
    config = DataConfig(name="digits_segmentation", dir=directory, segmentation=SegmentationDataConfig(**segmentation))
    return open_segmentation_source(config, split)


@pytest.mark.parametrize("split", list(PICTURES))
def test_records(digits_segmentation_dir: str, split: str) -> None:
    source = open_split(digits_segmentation_dir, split)
    assert (source.name, len(source)) == (f"digits_segmentation/{split}", PICTURES[split])
    assert source.class_names == ("background", *"0123456789")
    assert len({source.id(i) for i in range(len(source))}) == len(source)
    counts = np.zeros(11, int)
    for i in range(200):
        assert source.size(i) == (SIZE, SIZE)
        image, labels = read_example(source[i], source.num_classes, reduced=False)
        assert image.shape == (SIZE, SIZE, 3)
        counts += np.bincount(labels.ravel(), minlength=11)
        assert 1 <= len(np.unique(labels[labels > 0])) <= 4
    shares = counts / counts.sum()
    assert 0.6 < shares[0] < 0.8
    assert shares[1:].min() > 0.01


def test_reduced_labels_leave_the_digits(digits_segmentation_dir: str) -> None:
    source = open_split(digits_segmentation_dir, "test", reduce_zero_label=True)
    assert source.class_names == tuple("0123456789")
    _, labels = read_example(source[0], source.num_classes, reduced=True)
    assert set(np.unique(labels)) <= {*range(10), 255}


def test_labels_are_where_the_notes_are() -> None:
    digits = load_digits()
    white = np.full((SIZE, SIZE, 3), 255.0)
    for seed in range(20):
        image, labels = draw_picture(white, digits.images, digits.target, np.random.RandomState(seed))
        again, _ = draw_picture(white, digits.images, digits.target, np.random.RandomState(seed))
        np.testing.assert_array_equal(image, again)
        assert image[labels > 0].mean() < 160  # dark notes with bright ink, on white
        assert image[labels == 0].mean() > 245


def test_the_same_every_time_and_prepared_once(
    digits_segmentation_dir: str, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = open_split(digits_segmentation_dir, "test")
    stored = {source[i].id: source[i] for i in range(len(source))}
    digits, test = load_digits(), split_indices(load_digits().target)[1]
    builder = DigitsSegmentation(data_dir=str(tmp_path))
    for _, record in builder._generate_examples(
        "test", load_sample_images().images, digits.images[test], digits.target[test]
    ):
        example = stored[record["id"]]
        assert record["image"].getvalue() == example.image
        assert record["label_map"].getvalue() == example.label_map
    with caplog.at_level(logging.INFO, logger="rmt_jax"):
        open_split(digits_segmentation_dir, "test")
    assert not caplog.records
