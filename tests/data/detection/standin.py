"""A small data set in COCO's form: polygons, run lengths, crowds, and ids with gaps."""

import json
import pathlib
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as run_lengths

from rmt_jax.data import DataConfig, DetectionDataConfig

CATEGORIES = ((7, "cup"), (3, "ball"), (90, "tree"))  # id, name; the labels are 1, 0, 2
CLASSES = ("ball", "cup", "tree")
SIZES = ((40, 60), (60, 40), (33, 50), (80, 64), (64, 64), (48, 96))  # height, width

SMALL = DetectionDataConfig(scales=((96, 64),), canvas=(96, 64), eval_scale=(96, 64), max_boxes=5, masks=True)
MANY = DetectionDataConfig(
    scales=((96, 40), (96, 56), (80, 64)),
    crop_scales=((96, 30), (96, 50)),
    crop_sides=(24, 40),
    flip_first=True,
    canvas=(96, 64),
    eval_scale=(96, 64),
    max_boxes=5,
    masks=True,
)


def picture(index: int) -> np.ndarray:
    """Noise; the size goes by the index."""
    height, width = SIZES[index % len(SIZES)]
    return np.random.default_rng((5, index)).integers(0, 256, (height, width, 3), np.uint8)


def annotations(index: int, first_id: int) -> list[dict[str, Any]]:
    """One to three objects: a triangle, a rectangle of run lengths, and sometimes a crowd. None of picture 3."""
    if index == 3:
        return []
    height, width = SIZES[index % len(SIZES)]
    rng = np.random.default_rng((6, index))
    left, top = rng.uniform(0, (width / 2, height / 2)).round(2).tolist()
    right, bottom = (left + width / 3, top + height / 2)
    mask = np.zeros((height, width), np.uint8)
    mask[3:20, 5:30] = 1
    encoded = run_lengths.encode(np.asfortranarray(mask))
    crowd = run_lengths.encode(np.asfortranarray(1 - mask))
    entries: list[dict[str, Any]] = [
        {
            "category_id": CATEGORIES[index % 3][0],
            "bbox": [left, top, right - left, bottom - top],
            "area": (right - left) * (bottom - top) / 2,
            "segmentation": [[left, top, right, top, left, bottom]],
        },
        {
            "category_id": CATEGORIES[(index + 1) % 3][0],
            "bbox": [5, 3, 25, 17],
            "area": 425,
            "segmentation": {"size": [height, width], "counts": encoded["counts"].decode()},
        },
        {
            "category_id": 7,
            "bbox": [0, 0, width, height],
            "area": height * width - 425,
            "iscrowd": 1,
            "segmentation": {"size": [height, width], "counts": crowd["counts"].decode()},
        },
    ][: 1 + index % 3]
    return [{"id": first_id + 2 * number, "image_id": 100 - index, **entry} for number, entry in enumerate(entries)]


def content(count: int) -> dict[str, list[dict[str, Any]]]:
    """What the json holds: the annotations in another order than the pictures."""
    images, objects = [], []
    for index in range(count):
        height, width = SIZES[index % len(SIZES)]
        images.append({"id": 100 - index, "file_name": f"{index:02}.png", "height": height, "width": width})
        objects += annotations(index, 1 + 10 * index)
    categories = [{"id": number, "name": name} for number, name in CATEGORIES]
    return {"images": images, "annotations": objects[::-1], "categories": categories}


def write(root: pathlib.Path, count: int, split: str = "train", what: Any = None) -> pathlib.Path:
    """`root/annotations/instances_SPLIT.json` with `what`, or with `content`, and `root/SPLIT/NUMBER.png`."""
    (root / split).mkdir(parents=True, exist_ok=True)
    (root / "annotations").mkdir(exist_ok=True)
    for index in range(count):
        Image.fromarray(picture(index)).save(root / split / f"{index:02}.png")
    text = json.dumps(content(count) if what is None else what)
    (root / "annotations" / f"instances_{split}.json").write_text(text)
    return root


def config(root: pathlib.Path, detection: DetectionDataConfig = SMALL, **changes: Any) -> DataConfig:
    return DataConfig(**{"name": "coco_json", "dir": str(root), "detection": detection, **changes})
