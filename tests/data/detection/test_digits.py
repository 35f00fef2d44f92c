"""The digits on photographs, as a data set in COCO's form: complete, the same every time, boxes around the ink."""

import io
import json
import pathlib

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from rmt_jax.data import DataConfig, DetectionDataConfig
from rmt_jax.data.detection import DetectionSource, open_detection_source
from rmt_jax.data.detection import digits as made
from rmt_jax.data.detection.digits import PICTURES, SIDES, prepare_digits_detection
from rmt_jax.data.detection.reading import read_image, read_instances


def open_split(directory: str, split: str) -> DetectionSource:
    config = DataConfig(name="digits_detection", dir=directory, detection=DetectionDataConfig(masks=True))
    return open_detection_source(config, split)


@pytest.mark.parametrize("split", list(PICTURES))
def test_records(digits_detection_dir: str, split: str) -> None:
    source = open_split(digits_detection_dir, split)
    assert (source.name, len(source)) == (f"digits_detection/{split}", PICTURES[split])
    assert source.class_names == tuple("0123456789")
    assert source.annotations.box_counts().sum() == len(source.annotations.boxes)
    counts = np.zeros(10, int)
    for index in range(100):
        example = source[index]
        image, instances = read_image(example), read_instances(example, masks=True)
        assert SIDES[0] <= min(image.shape[:2]) <= max(image.shape[:2]) <= SIDES[1]
        assert instances.masks is not None
        assert 1 <= len(instances.labels) <= 6
        assert instances.masks.sum(axis=0).max() == 1
        for box, mask in zip(instances.boxes, instances.masks, strict=True):
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            np.testing.assert_array_equal(box, [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
            assert 12 <= rows[-1] + 1 - rows[0] <= 84
        counts += np.bincount(instances.labels, minlength=10)
    assert counts.min() >= 10


def test_pycocotools_reads_it(digits_detection_dir: str) -> None:
    root = prepare_digits_detection(digits_detection_dir)
    coco = COCO(str(root / "annotations/instances_test.json"))
    source = open_split(digits_detection_dir, "test")
    assert list(coco.imgs) == source.annotations.image_ids.tolist()
    instances = read_instances(source[7], masks=True)
    entries = coco.loadAnns(coco.getAnnIds(imgIds=[8]))
    assert instances.masks is not None
    for entry, mask in zip(entries, instances.masks, strict=True):
        np.testing.assert_array_equal(coco.annToMask(entry), mask)
        assert entry["area"] == mask.sum()


def test_the_same_every_time_and_prepared_once(
    digits_detection_dir: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PICTURES, "train", 3)
    monkeypatch.setitem(PICTURES, "test", 3)
    few, all_of_them = prepare_digits_detection(str(tmp_path)), prepare_digits_detection(digits_detection_dir)
    for split in PICTURES:
        ours, theirs = (
            json.loads((root / f"annotations/instances_{split}.json").read_text()) for root in (few, all_of_them)
        )
        assert ours["images"] == theirs["images"][:3]
        assert ours["annotations"] == theirs["annotations"][: len(ours["annotations"])]
        for number in range(3):
            name = f"{split}/{number:04d}.jpg"
            assert (few / name).read_bytes() == (all_of_them / name).read_bytes()
    monkeypatch.setattr(made, "_write", lambda root: pytest.fail("written again"))
    assert prepare_digits_detection(str(tmp_path)) == few
    assert [path.name for path in few.parent.iterdir()] == [few.name]


def test_another_process_may_be_first(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its copy stays, and ours is removed."""

    def both(root: pathlib.Path) -> None:
        (root / "annotations").mkdir(parents=True)
        (root.with_name("1.0.0") / "theirs").mkdir(parents=True)

    monkeypatch.setattr(made, "_write", both)
    root = prepare_digits_detection(str(tmp_path))
    assert [path.name for path in root.iterdir()] == ["theirs"]
    assert [path.name for path in root.parent.iterdir()] == ["1.0.0"]
    with pytest.raises(ValueError, match="split 'validation' of digits_detection: expected one of train, test"):
        open_split(str(tmp_path), "validation")


def test_pictures_are_jpegs(digits_detection_dir: str) -> None:
    with Image.open(io.BytesIO(open_split(digits_detection_dir, "test")[0].image)) as image:
        assert image.format == "JPEG"
