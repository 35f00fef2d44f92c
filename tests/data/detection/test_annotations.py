"""COCO's json to arrays: what counts, what is kept for evaluation, and what is refused."""

import copy
import logging
import os
import pathlib
import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as run_lengths

from rmt_jax.data.detection import AnnotationError
from rmt_jax.data.detection.annotations import check_trainable, training_pictures
from rmt_jax.data.detection.coco_json import parse_coco, read_coco
from rmt_jax.data.detection.masks import bitmap, decompress
from rmt_jax.data.detection.stored import stored_annotations
from tests.data.detection import standin

COUNT = 12


def test_everything_is_kept_in_the_order_of_the_pictures() -> None:
    annotations = parse_coco(standin.content(COUNT), "x")
    assert annotations.class_names == standin.CLASSES
    assert annotations.category_ids == (3, 7, 90)
    assert len(annotations) == COUNT
    labels = {7: 1, 3: 0, 90: 2}
    for index in range(COUNT):
        expected = standin.annotations(index, 1)[::-1]  # the json has them backwards
        objects = annotations.objects(index)
        assert objects.labels.tolist() == [labels[entry["category_id"]] for entry in expected]
        assert objects.crowd.tolist() == [bool(entry.get("iscrowd")) for entry in expected]
        for box, outline, entry in zip(objects.boxes, objects.outlines, expected, strict=True):
            x, y, width, height = entry["bbox"]
            np.testing.assert_array_equal(box, np.float32([x, y, x + width, y + height]))
            if isinstance(outline, bytes):
                assert outline == entry["segmentation"]["counts"].encode()
            else:
                assert [polygon.tolist() for polygon in outline] == entry["segmentation"]


def test_what_counts_is_what_counts_upstream() -> None:
    """Width, height 60, 40. Each annotation is followed by whether upstream would train on it."""
    boxes: list[tuple[dict[str, Any], bool]] = [
        ({"bbox": [1, 2, 3, 4], "area": 12}, True),
        ({"bbox": [-5, -5, 6, 6], "area": 36}, True),  # a corner of it is inside
        ({"bbox": [-5, 0, 5, 9], "area": 45}, False),  # ends at the edge
        ({"bbox": [60, 3, 4, 4], "area": 16}, False),
        ({"bbox": [1, 2, 0.9, 40], "area": 9}, False),
        ({"bbox": [1, 2, 40, 0.9], "area": 9}, False),
        ({"bbox": [1, 2, 3, 4], "area": 0}, False),
        ({"bbox": [1, 2, 3, 4]}, True),  # area of the box
        ({"bbox": [1, 2, 3, 4], "area": 12, "ignore": 1}, False),
        ({"bbox": [9, 9, 30, 30], "area": 900, "iscrowd": 1}, True),
    ]
    content = standin.content(1)
    content["annotations"] = [
        {"id": number, "image_id": 100, "category_id": 3, **entry} for number, (entry, _) in enumerate(boxes)
    ]
    annotations = parse_coco(content, "x")
    objects = annotations.objects(0)
    counting = np.array([counts for _, counts in boxes])
    kept = np.array([entry["bbox"] for entry, _ in boxes], np.float64)[counting]
    np.testing.assert_array_equal(objects.boxes, np.float32(np.c_[kept[:, :2], kept[:, :2] + kept[:, 2:]]))
    assert objects.crowd.tolist() == [False, False, False, True]
    assert objects.outlines == (None,) * 4
    assert annotations.box_counts().tolist() == [3]
    reasons = {reason: np.flatnonzero(marked).tolist() for reason, marked in annotations.left_out().items()}
    assert reasons == {"marked to ignore": [8], "beside the picture": [2, 3], "without area": [4, 5, 6]}
    # Evaluation has all of them, with new numbers: to pycocotools, number 0 would be no object.
    entries = annotations.data_set()["annotations"]
    assert [entry["bbox"] for entry in entries] == [entry["bbox"] for entry, _ in boxes]
    assert [entry["id"] for entry in entries] == list(range(1, 11))
    assert entries[7]["area"] == 12


def test_the_data_set_is_the_json_again() -> None:
    content = standin.content(COUNT)
    found = parse_coco(content, "x").data_set()
    assert found["images"] == content["images"]
    assert found["categories"] == sorted(content["categories"], key=lambda entry: entry["id"])
    ours = {(entry["image_id"], *entry["bbox"]): entry for entry in found["annotations"]}
    assert len(ours) == len(content["annotations"])
    for entry in content["annotations"]:
        same = ours[entry["image_id"], *entry["bbox"]]
        assert same["area"] == entry["area"]
        assert same["category_id"] == entry["category_id"]
        assert same["iscrowd"] == entry.get("iscrowd", 0)
        outline = entry["segmentation"]
        expected = {**outline, "counts": outline["counts"].encode()} if isinstance(outline, dict) else outline
        assert same["segmentation"] == expected


def test_uncompressed_run_lengths() -> None:
    content = standin.content(1)
    content["annotations"] = [
        {
            **standin.annotations(0, 1)[0],
            "segmentation": {"size": [40, 60], "counts": [0, 2, 40 * 60 - 5, 3]},  # columns first
        }
    ]
    mask = bitmap(parse_coco(content, "x").objects(0).outlines[0], (40, 60))
    assert np.flatnonzero(mask.T.ravel()).tolist() == [0, 1, 2397, 2398, 2399]


@pytest.mark.parametrize("share", [0.5, 0.02, 0.999])
def test_compressed_run_lengths(share: float) -> None:
    rng = np.random.default_rng(0)
    for size in ((7, 9), (300, 400), (1, 1)):
        mask = rng.random(size) < share
        runs = decompress(run_lengths.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"])
        pixels = np.repeat(np.arange(len(runs)) % 2, runs)
        np.testing.assert_array_equal(pixels.reshape(size[::-1]).T, mask)
    for data in (b"", b"a!", b"5o", b"\xff"):
        with pytest.raises(ValueError, match="compressed form"):
            decompress(data)


def test_pictures_to_train_on() -> None:
    content = standin.content(COUNT)
    content["images"][6]["height"] = 31  # its one object is a polygon
    pictures, left_out = training_pictures(parse_coco(content, "x"))
    assert pictures.tolist() == [i for i in range(COUNT) if i not in (3, 6)]
    assert left_out == {"without objects": 1, "smaller than 32 pixels": 1}
    # As upstream: a picture where nothing counts is one without objects to find, and is trained on.
    content = standin.content(2)
    for entry in content["annotations"]:
        entry["area"] = 0
    annotations = parse_coco(content, "x")
    assert training_pictures(annotations)[0].tolist() == [0, 1]
    assert not len(annotations.objects(1).boxes)


def test_annotations_that_cannot_be_trained_on() -> None:
    content = standin.content(COUNT)
    annotations = parse_coco(content, "x")
    pictures, _ = training_pictures(annotations)
    check_trainable(annotations, pictures, "x/train", max_boxes=2, masks=True)
    with pytest.raises(AnnotationError, match=r"8 pictures of x/train .*max_boxes=1 boxes, the most, 2, has 01\.png"):
        check_trainable(annotations, pictures, "x/train", max_boxes=1, masks=True)
    with pytest.raises(AnnotationError, match="no picture with an object"):
        check_trainable(annotations, pictures[:0], "x/train", max_boxes=1, masks=True)
    for entry in content["annotations"]:
        if entry["image_id"] == 98 and not entry.get("iscrowd"):
            del entry["segmentation"]
    without = parse_coco(content, "x")
    check_trainable(without, pictures, "x/train", max_boxes=2, masks=False)
    with pytest.raises(
        AnnotationError, match=r"2 of the \d+ objects of x/train have no mask .* is in 02\.png: .*masks=False"
    ):
        check_trainable(without, pictures, "x/train", max_boxes=2, masks=True)


def change(section: str, position: int, **values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content[section][position].update(values)


REFUSED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "captions": (lambda c: c.pop("categories"), "is no COCO annotation file: .*found an object with 'images', 'annota"),
    "category": (
        change("annotations", 0, category_id=8),
        "annotation .* has category_id 8, which is not among the cat",
    ),
    "two annotations": (lambda c: c["annotations"].append(c["annotations"][3]), "annotation id .* is there twice"),
    "two pictures": (change("images", 1, id=100), "two pictures have the id 100"),
    "two files": (change("images", 1, file_name="00.png"), "two pictures have the file_name '00.png'"),
    "two categories": (change("categories", 1, id=7), "two categories have the id 7"),
    "two names": (change("categories", 1, name="cup"), "two categories have the name 'cup'"),
    "text for a number": (change("images", 1, id="a"), "picture has id 'a': expected a whole number"),
    "no size": (lambda c: c["images"][1].pop("width"), "picture has width None: expected a whole number"),
    "empty picture": (change("images", 1, width=0), r"'01\.png' has height, width \(60, 0\): expected 1 or more"),
    "no file": (change("images", 1, file_name=None), "picture 99 has file_name None"),
    "no box": (
        lambda c: c["annotations"][0].pop("bbox"),
        r"annotation \d+ has bbox \[\]: expected four finite numbers",
    ),
    "three numbers": (change("annotations", 0, bbox=[1, 2, 3]), "expected four finite numbers"),
    "not a number": (change("annotations", 0, bbox=[1, 2, 3, float("nan")]), "expected four finite numbers"),
    "area": (change("annotations", 0, area="big"), "has area big: expected a finite number"),
    "polygon": (change("annotations", 0, segmentation=[[1, 2, 3, 4]]), "of three or more finite points"),
    "odd polygon": (change("annotations", 0, segmentation=[[1, 2, 3, 4, 5, 6, 7]]), "of three or more finite points"),
    "size": (
        change("annotations", 0, segmentation={"size": [4, 6], "counts": "1"}),
        r"expected polygons, or \{'size': \[48, 96\], 'counts': \.\.\.\}",
    ),
    "run lengths": (
        change("annotations", 0, segmentation={"size": [48, 96], "counts": [5, 6]}),
        "add up to the 4608 pix",
    ),
    "few run lengths": (
        change("annotations", 0, segmentation={"size": [48, 96], "counts": "52"}),
        "do not add up",
    ),
    "no run lengths": (change("annotations", 0, segmentation={"size": [48, 96], "counts": "a!"}), "compressed form"),
    "entry": (lambda c: c["images"].append(3), r"images\[12\] is '3': expected an object"),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_refused_by_name(name: str) -> None:
    content = copy.deepcopy(standin.content(COUNT))
    damage, message = REFUSED[name]
    damage(content)
    with pytest.raises(AnnotationError, match=message):
        parse_coco(content, "instances.json")


def test_files_that_are_no_json(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "instances.json"
    for text, message in (
        ('{"images": [', "is no json, or is cut off"),
        ("\x89PNG\r\n", "is no json, or is cut off"),
        ("[]", "is no COCO annotation file: .*found list"),
    ):
        path.write_text(text, encoding="latin-1")
        with pytest.raises(AnnotationError, match=re.escape(str(path)) + " " + message):
            read_coco(str(path))


def test_annotations_of_other_pictures_are_counted() -> None:
    content = standin.content(COUNT)
    content["annotations"][0]["image_id"] = 5000
    annotations = parse_coco(content, "x")
    assert annotations.strangers == 1
    assert len(annotations.boxes) == len(content["annotations"]) - 1


def test_a_json_is_read_once_and_shared(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "a.arrays"
    built = []

    def build() -> Any:
        built.append(1)
        return parse_coco(standin.content(COUNT), "x")

    first = stored_annotations(["a", 1], build, str(file))
    again = stored_annotations(["a", 1], build, str(file))
    assert len(built) == 1
    plain = build()
    for annotations in (first, again, pickle.loads(pickle.dumps(again))):
        assert annotations.data_set() == plain.data_set()
        assert annotations.strangers == plain.strangers
        assert isinstance(annotations.boxes.base, np.ndarray)  # a part of the mapped file
        assert not annotations.boxes.flags.writeable
    assert len(pickle.dumps(first)) < 1000
    # Another key, or a damaged file: built again.
    stored_annotations(["a", 2], build, str(file))
    assert len(built) == 3
    file.write_bytes(file.read_bytes()[:-100])
    assert stored_annotations(["a", 2], build, str(file)).data_set() == plain.data_set()
    assert len(built) == 4
    assert "cannot be read, and are made anew" in caplog.text
    with pytest.raises(ValueError, match="was changed while it was in use"):
        pickle.loads(pickle.dumps(again))
    # Nowhere to write: still annotations, but copied.
    monkeypatch.setattr(os, "replace", _refuse)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with caplog.at_level(logging.WARNING):
        last = stored_annotations(["b"], build, str(tmp_path / "b.arrays"))
    assert "copied to every worker process" in caplog.text
    assert pickle.loads(pickle.dumps(last)).data_set() == plain.data_set()
    assert [path.name for path in tmp_path.iterdir() if "b.arrays" in path.name] == []


def _refuse(source: str, target: str) -> None:
    raise OSError("read-only file system")
