"""A small data set with label maps, in the layouts that sources read."""

import io
import pathlib

import numpy as np
from PIL import Image

from rmt_jax.data import DataConfig, SegmentationDataConfig

CLASSES = ("ground", "wall", "sky")
SIZES = ((40, 60), (60, 40), (20, 30), (33, 50), (80, 80), (40, 61))  # height, width

SMALL = SegmentationDataConfig(scale=(128, 32), crop_size=(32, 40))


def example(index: int, *, first_label: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Picture and labels: blocks of classes in blocks of colours, some of them ignored; the size goes by the index."""
    rng = np.random.default_rng((7, index))
    height, width = SIZES[index % len(SIZES)]
    blocks = rng.integers(0, len(CLASSES) + 1, (-(-height // 10), -(-width // 10)))
    blocks = blocks.repeat(10, 0).repeat(10, 1)[:height, :width]
    labels = np.where(blocks == len(CLASSES), 255, blocks + first_label).astype(np.uint8)
    image = rng.integers(0, 256, (4, 3))[blocks] + rng.integers(-10, 10, (height, width, 3))
    return image.clip(0, 255).astype(np.uint8), labels


def encode(array: np.ndarray, image_format: str = "PNG", mode: str | None = None) -> bytes:
    data = io.BytesIO()
    image = Image.fromarray(array)
    (image if mode is None else image.convert(mode)).save(data, image_format)
    return data.getvalue()


def write(
    root: pathlib.Path, split: str, count: int, *, labels: str = "labels", first_label: int = 0, start: int = 0
) -> pathlib.Path:
    """`count` examples as `root/images/split/NUMBER.png` and `root/LABELS/split/NUMBER.png`."""
    for folder in ("images", labels):
        (root / folder / split).mkdir(parents=True, exist_ok=True)
    for index in range(start, start + count):
        image, label_map = example(index, first_label=first_label)
        (root / "images" / split / f"{index:02}.png").write_bytes(encode(image))
        (root / labels / split / f"{index:02}.png").write_bytes(encode(label_map))
    return root


def config(root: pathlib.Path, segmentation: SegmentationDataConfig = SMALL, **changes: object) -> DataConfig:
    return DataConfig(**{"name": "label_folder", "dir": str(root), "segmentation": segmentation, **changes})
