"""`rmt data check` of pictures with boxes: what is in a data set, and what is wrong with it."""

import pathlib

import numpy as np
import pytest
from PIL import Image

from rmt_jax.cli import main
from tests.data.detection import standin

COUNT = 12


def check(root: pathlib.Path, *more: str) -> int:
    return main(["data", "check", "--data-name", "coco_json", "--data-dir", str(root), "--split", "train", *more])


def test_objects_are_counted(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = standin.content(COUNT)
    content["annotations"][0]["area"] = 0
    content["annotations"][1]["image_id"] = 5000
    standin.write(tmp_path, COUNT, what=content)
    assert check(tmp_path, "--masks") == 0
    lines = capsys.readouterr().out.splitlines()
    entries = [entry for entry in content["annotations"][2:] if not entry.get("iscrowd")]
    crowds = sum(entry.get("iscrowd", 0) for entry in content["annotations"][2:])
    small = sum(entry["area"] < 32**2 for entry in entries)
    assert lines[:3] == [
        f"{tmp_path.name}/train: 12 pictures, 3 classes",
        f"{len(entries)} objects: {small} small, {len(entries) - small} medium, 0 large; {crowds} crowds",
        "at most 2 objects in a picture",
    ]
    for label, name in enumerate(standin.CLASSES):
        category = {name: number for number, name in standin.CATEGORIES}[name]
        images = [entry["image_id"] for entry in entries if entry["category_id"] == category]
        assert f"{label:4}  {name:24} {len(images):10} objects, in {len(set(images))} pictures" in lines
    assert "left out: 1 annotations without area" in lines
    assert "left out: 1 annotations of pictures that are not in the data set" in lines
    assert "left out of training: 1 pictures without objects" in lines


def test_problems_are_listed(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    standin.write(tmp_path, COUNT)
    (tmp_path / "train/02.png").write_bytes(b"nothing")
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / "train/07.png")
    (tmp_path / "pictures").symlink_to(tmp_path / "train")
    where = ("--annotations", "annotations/instances_{split}.json", "--images", "pictures")
    assert check(tmp_path, *where) == 1
    out = capsys.readouterr().out
    assert "cannot decode the picture of record '02.png'" in out
    assert "'07.png' has 60 x 40 pixels (width x height), its annotations are of 40 x 60" in out
    assert "turned by its EXIF orientation" in out
    content = standin.content(COUNT)
    content["annotations"] = [{**content["annotations"][-1], "id": number} for number in range(101)]
    standin.write(tmp_path, 0, what=content)
    assert check(tmp_path) == 1
    assert "1 pictures of " in (out := capsys.readouterr().out)
    assert "set data.detection.max_boxes=101" in out


@pytest.mark.parametrize("words", [["--images", "nowhere"], ["--annotations", "{x}"], ["--threads", "0"]])
def test_what_cannot_be_checked(tmp_path: pathlib.Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    standin.write(tmp_path, 2)
    assert check(tmp_path, *words) == 2
    assert capsys.readouterr().err.startswith("error: ")
