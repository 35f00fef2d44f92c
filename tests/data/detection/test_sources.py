"""Folders with a json, TFDS data sets, and what is said of those that are not as they should be."""

import dataclasses
import io
import logging
import pathlib
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from rmt_jax.data import DataConfig, DetectionDataConfig, open_source
from rmt_jax.data.detection import AnnotationError, open_detection_source
from rmt_jax.data.detection.reading import read_image, read_instances
from rmt_jax.data.detection.sources import is_detection
from rmt_jax.data.digits import prepare
from rmt_jax.data.segmentation import open_segmentation_source
from tests.data.detection import standin

COUNT = 8


def test_coco_json(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    standin.write(tmp_path, COUNT)
    source = open_detection_source(standin.config(tmp_path), "train")
    assert (source.name, len(source), source.class_names) == (f"{tmp_path.name}/train", COUNT, standin.CLASSES)
    assert not caplog.records
    for index in range(COUNT):
        example = source[index]
        assert example.id == source.id(index) == f"{index:02}.png"
        np.testing.assert_array_equal(read_image(example), standin.picture(index))
        instances = read_instances(example, masks=True)
        crowds = sum(entry.get("iscrowd", 0) for entry in standin.annotations(index, 1))
        assert len(instances.boxes) == len(standin.annotations(index, 1)) - crowds
        assert instances.masks is not None
        assert instances.masks.shape == (len(instances.boxes), *standin.SIZES[index % 6])


def test_other_layouts(tmp_path: pathlib.Path) -> None:
    """Pictures in subfolders, the json among them."""
    content = standin.content(2)
    for entry in content["images"]:
        entry["file_name"] = f"a/{entry['file_name']}"
    standin.write(tmp_path, 2, what=content)
    (tmp_path / "data").mkdir()
    (tmp_path / "train").rename(tmp_path / "data/a")
    (tmp_path / "annotations/instances_train.json").rename(tmp_path / "data/_train.json")
    detection = DetectionDataConfig(annotations="data/_{split}.json", images="data")
    source = open_detection_source(standin.config(tmp_path, detection), "train")
    assert source[1].id == "a/01.png"
    np.testing.assert_array_equal(read_image(source[1]), standin.picture(1))


def test_a_changed_json_is_read_again(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    standin.write(tmp_path, COUNT)
    before = open_detection_source(standin.config(tmp_path), "train")
    content = standin.content(COUNT)
    content["annotations"][0]["area"] = 0
    content["annotations"][1]["image_id"] = 4711
    standin.write(tmp_path, COUNT, what=content)
    after = open_detection_source(standin.config(tmp_path), "train")
    assert len(after.annotations.boxes) == len(before.annotations.boxes) - 1
    assert "left out of" in caplog.text
    assert "annotations: 1 without area, 1 of pictures that are not in the data set" in caplog.text


def test_both_splits_must_have_the_same_classes(tmp_path: pathlib.Path) -> None:
    standin.write(tmp_path, COUNT)
    content = standin.content(2)
    standin.write(tmp_path, 2, split="validation", what=content)
    open_detection_source(standin.config(tmp_path), "train")
    for categories, message in (
        ([*content["categories"], {"id": 100, "name": "cat"}], "label 3 is nothing in the one and 'cat' in the other"),
        ([{**entry, "id": 97 - entry["id"]} for entry in content["categories"]], "label 0 is 'ball' .* and 'tree' in"),
    ):
        standin.write(tmp_path, 2, split="validation", what={**content, "annotations": [], "categories": categories})
        with pytest.raises(AnnotationError, match=message):
            open_detection_source(standin.config(tmp_path), "train")
        assert len(open_detection_source(standin.config(tmp_path), "validation")) == 2


def test_what_is_not_there(tmp_path: pathlib.Path) -> None:
    standin.write(tmp_path, COUNT)
    config = standin.config(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"annotations holds instances_train\.json.* data\.detection\.annotations"
    ):
        open_detection_source(config, "validation")
    with pytest.raises(FileNotFoundError, match="does not exist itself"):
        open_detection_source(standin.config(tmp_path / "nowhere"), "train")
    for name in ("03.png", "05.png"):
        (tmp_path / "train" / name).unlink()
    with pytest.raises(FileNotFoundError, match=r"2 of the 8 pictures that .* are not there, the first is .*03\.png"):
        open_detection_source(config, "train")
    standin.write(tmp_path, 0, what=standin.content(0))
    with pytest.raises(AnnotationError, match="names no pictures"):
        open_detection_source(config, "train")
    with pytest.raises(ValueError, match=r"needs data\.dir, the folder with annotations/instances_SPLIT\.json"):
        open_detection_source(DataConfig(name="coco_json"), "train")


def test_names_of_other_tasks(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match=r"'ade20k' has no boxes: .* coco_json, digits_detection or a TFDS name"):
        open_detection_source(DataConfig(name="ade20k"), "train")
    with pytest.raises(ValueError, match="'coco_json' has boxes, and is for detection: to classify"):
        open_source(standin.config(tmp_path), "train")
    with pytest.raises(ValueError, match="'coco_json' has boxes: for segmentation expected"):
        open_segmentation_source(standin.config(tmp_path), "train")


# It takes no name from TFDS: what is read must be what is on disk.
with tfds.core.registered.skip_registration():

    class Coco(tfds.core.GeneratorBasedBuilder):
        """A few pictures under the name and with the features of TFDS's own."""

        VERSION = tfds.core.Version("1.1.0")
        BUILDER_CONFIGS: ClassVar = [tfds.core.BuilderConfig(name="2017", version=VERSION)]
        code_path = None

        def _info(self) -> tfds.core.DatasetInfo:
            objects = {
                "id": np.int64,
                "area": np.int64,
                "bbox": tfds.features.BBoxFeature(),
                "label": tfds.features.ClassLabel(num_classes=80),
                "is_crowd": np.bool_,
            }
            features = {
                "image": tfds.features.Image(encoding_format="png"),
                "image/filename": tfds.features.Text(),
                "image/id": np.int64,
                "objects": tfds.features.Sequence(objects),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
            return {"validation": self._generate_examples()}

        def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
            for index, row in enumerate(standin.content(COUNT)["images"]):
                png = io.BytesIO()
                Image.fromarray(standin.picture(index)).save(png, "PNG")
                png.seek(0)
                height, width = row["height"], row["width"]
                objects = []
                for entry in standin.annotations(index, 1):
                    x, y, wide, high = entry["bbox"]
                    box = tfds.features.BBox(y / height, x / width, (y + high) / height, (x + wide) / width)
                    crowd = bool(entry.get("iscrowd"))
                    area, label = int(entry["area"]), entry["category_id"] % 80
                    objects.append({"id": 5, "area": area, "bbox": box, "label": label, "is_crowd": crowd})
                yield (
                    index,
                    {"image": png, "image/filename": row["file_name"], "image/id": row["id"], "objects": objects},
                )


def test_tfds(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    """The same boxes as in the json, to the hundredth of a pixel."""
    prepare(Coco, str(tmp_path))
    config = DataConfig(name="coco/2017", dir=str(tmp_path))
    assert is_detection(config)
    with caplog.at_level(logging.INFO, logger="rmt_jax"):
        source = open_detection_source(config, "validation")
        again = open_detection_source(config, "validation")
    assert [record.message for record in caplog.records] == ["reading all 8 records of coco/validation, once"]
    assert again.annotations.data_set() == source.annotations.data_set()
    assert source.num_classes == 80
    assert source.annotations.category_ids[:12] == (*range(1, 12), 13)
    assert source.annotations.category_ids[-1] == 90
    halves = [open_detection_source(config, split).annotations for split in ("validation[:50%]", "validation[50%:]")]
    assert sorted(np.concatenate([half.image_ids for half in halves])) == sorted(source.annotations.image_ids)
    assert len(list(tmp_path.rglob("*.arrays"))) == 3
    order = {source.id(position): position for position in range(len(source))}  # TFDS shuffles
    for index in range(COUNT):
        example = source[order[f"{index:02}.png"]]
        np.testing.assert_array_equal(read_image(example), standin.picture(index))
        assert source.annotations.image_ids[order[example.id]] == 100 - index
        expected = standin.annotations(index, 1)
        boxes = np.array([entry["bbox"] for entry in expected]).reshape(-1, 4)
        corners = np.c_[boxes[:, :2], boxes[:, :2] + boxes[:, 2:]].round(2).astype(np.float32)
        np.testing.assert_allclose(example.objects.boxes, corners, atol=1e-4)
        assert example.objects.labels.tolist() == [entry["category_id"] % 80 for entry in expected]
        assert example.objects.crowd.tolist() == [bool(entry.get("iscrowd")) for entry in expected]
    with pytest.raises(FileNotFoundError, match=r"coco/2017 is not prepared in .*: tfds build coco/2017 --file_format"):
        open_detection_source(dataclasses.replace(config, dir=str(tmp_path / "elsewhere")), "validation")
    with pytest.raises(ValueError, match="has boxes and no masks"):
        open_detection_source(DataConfig(name="coco/2017", dir=str(tmp_path), detection=standin.SMALL), "validation")


def test_tfds_data_sets_without_boxes(digits_dir: str) -> None:
    config = DataConfig(name="digits:1.0.0", dir=digits_dir)
    assert not is_detection(config)
    with pytest.raises(ValueError, match=r"has the features .*: expected a picture `image` and `objects`"):
        open_detection_source(config, "train")
