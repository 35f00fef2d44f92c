"""Handwritten digits on photographs with boxes and masks, in COCO's form: made of what scikit-learn ships."""

import contextlib
import json
import os
import pathlib
import shutil
import uuid
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from pycocotools import mask as run_lengths

from rmt_jax.data.detection.json_source import CocoJsonSource
from rmt_jax.data.digits import split_indices
from rmt_jax.data.drawn_digits import INK, place_digits, with_noise

PICTURES = {"train": 1500, "test": 200}
SIDES = (112, 160)  # smallest and largest of a picture, in pixels

_NAME, _VERSION = "digits_detection", "1.0.0"
_DESCRIPTION = """Pictures with two to six of scikit-learn's handwritten digits, in ink on a photograph or on a note
that lies on it. A box is around a digit's ink, and its mask is that ink. The photographs are scikit-learn's china.jpg
and flower.jpg: train is cut from their left three quarters and test from the rest, and the digits of the two are those
of the two splits of rmt_jax's digits."""

# Parts of a photograph's width, and how many of its pixels one of the picture is.
_COLUMNS = {"train": (0.0, 0.75), "test": (0.75, 1.0)}
_SHRUNK = (0.75, 1.0)

_DIGITS = (2, 6)  # in a picture, where they find place
_HEIGHTS = (26, 84)  # of a digit, in pixels


def open_digits(data_dir: str | None, split: str) -> CocoJsonSource:
    """A split of the data set, which is prepared if it is not there. data_dir: None is TFDS's default.

    Raises:
        ValueError: there is no such split.
    """
    if split not in PICTURES:
        raise ValueError(f"split {split!r} of {_NAME}: expected one of {', '.join(PICTURES)}")
    root = prepare_digits_detection(data_dir)
    annotations = root / "annotations" / f"instances_{split}.json"
    return CocoJsonSource(str(annotations), str(root / split), f"{_NAME}/{split}")


def prepare_digits_detection(data_dir: str | None = None) -> pathlib.Path:
    """The folder with annotations/instances_SPLIT.json and SPLIT/: written on the first call and reused afterwards.

    Several processes may call this at once: each writes to a folder of its own and the first to finish renames it
    into place. data_dir: of TFDS, beside whose data sets it lies; None is its default.
    """
    root = pathlib.Path(os.path.expanduser(data_dir or tfds.core.constants.DATA_DIR), _NAME, _VERSION)
    if root.is_dir():
        return root
    incomplete = root.with_name(f"incomplete.{uuid.uuid4().hex}")
    try:
        _write(incomplete)
        with contextlib.suppress(OSError):  # another process was first: the content is the same, use it
            incomplete.rename(root)
    finally:
        shutil.rmtree(incomplete, ignore_errors=True)
    if not root.is_dir():
        raise OSError(f"{root} could not be written")
    return root


def _write(root: pathlib.Path) -> None:
    from sklearn.datasets import load_digits, load_sample_images

    digits = load_digits()
    photographs = [Image.fromarray(image) for image in load_sample_images().images]
    (root / "annotations").mkdir(parents=True)
    for split, taken in zip(PICTURES, split_indices(digits.target), strict=True):
        (root / split).mkdir()
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number in range(PICTURES[split]):
            # NumPy promises never to change this stream (NEP 19).
            random = np.random.RandomState([17, len(split), number])
            background = _cut(photographs[number % len(photographs)], _COLUMNS[split], random)
            picture, instances, classes = draw_instances(background, digits.images[taken], digits.target[taken], random)
            name, (height, width) = f"{number:04d}.jpg", instances.shape
            Image.fromarray(picture).save(root / split / name, "JPEG", quality=95)
            images.append({"id": number + 1, "file_name": name, "height": height, "width": width})
            for drawn, label in enumerate(classes, start=1):
                entry = {"id": len(annotations) + 1, "image_id": number + 1, "category_id": int(label) + 1}
                annotations.append({**entry, **_annotation(instances == drawn)})
        content = {
            "info": {"description": _DESCRIPTION, "version": _VERSION},
            "images": images,
            "annotations": annotations,
            "categories": [{"id": digit + 1, "name": str(digit)} for digit in range(10)],
        }
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content), encoding="utf-8")


def _cut(photograph: Image.Image, columns: tuple[float, float], random: np.random.RandomState) -> np.ndarray:
    """A random part of some columns, in a random size, float64 [height width 3]."""
    first, last = (round(share * photograph.width) for share in columns)
    height, width = random.randint(SIDES[0], SIDES[1] + 1, 2)
    shrunk = random.uniform(*_SHRUNK)
    rows, wide = round(height * shrunk), round(width * shrunk)
    left, top = random.randint(first, last - wide + 1), random.randint(photograph.height - rows + 1)
    box = (left, top, left + wide, top + rows)
    return np.asarray(photograph.resize((width, height), Image.Resampling.BICUBIC, box), np.float64)


def draw_instances(
    background: np.ndarray, digits: np.ndarray, labels: np.ndarray, random: np.random.RandomState
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Some digits drawn on a background or on bright notes on it, none over another.

    Args:
        background: [height width 3], 0 .. 255.
        digits: [count 8 8], ink from 0 to 16.
        labels: [count], the digits' classes 0 .. 9.
        random: draws everything.

    Returns:
        The picture, uint8 [height width 3], the number of the digit whose ink each pixel is, counted from 1, or 0,
        uint8 [height width], and the class of each drawn digit, int [drawn].
    """
    picture = background.copy()
    instances = np.zeros(background.shape[:2], np.uint8)
    classes: list[int] = []
    placed = place_digits(instances.shape, digits, random, count=_DIGITS, heights=_HEIGHTS)
    for drawn, ink, _, place in placed:
        on_note = random.rand() < 0.35
        if on_note:
            opaque = random.uniform(0.6, 0.9)
            picture[place] = picture[place] * (1 - opaque) + random.uniform(190, 255, 3) * opaque
        bright = not on_note and picture[place].mean() < random.uniform(100, 150)
        color = random.uniform(0, 80, 3)
        color = 255 - color if bright else color
        picture[place] += (color - picture[place]) * (ink * random.uniform(0.8, 1))[..., None]
        classes.append(labels[drawn])
        instances[place][ink > INK] = len(classes)
    return with_noise(picture, random), instances, np.array(classes, np.int64)


def _annotation(ink: np.ndarray) -> dict[str, Any]:
    """What COCO says of an object. Run lengths and not polygons, which have no holes."""
    encoded = run_lengths.encode(np.asfortranarray(ink.astype(np.uint8)))
    return {
        "bbox": run_lengths.toBbox(encoded).tolist(),
        "area": int(run_lengths.area(encoded)),
        "iscrowd": 0,
        "segmentation": {"size": list(ink.shape), "counts": encoded["counts"].decode()},
    }
