"""What is random about training pictures, drawn for all of an epoch at once and before any of them is read.

So the canvas of each picture, which its changes decide, is known when batches are put together.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from rmt_jax.data.detection_config import DetectionDataConfig

_CROPPED = 0.5  # of the pictures, where there are crops


class Crop(NamedTuple):
    """A part of a picture that was first resized; all as vertical, horizontal, in pixels."""

    resized: tuple[int, int]
    corner: tuple[int, int]
    sides: tuple[int, int]


class Change(NamedTuple):
    """What is done to a picture: flipped, cropped, and resized to height and width."""

    flip: bool
    crop: Crop | None
    size: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Changes:
    """A change for each of several pictures.

    Attributes:
        flip: bool [pictures].
        cropped: bool [pictures].
        crop: int64 [pictures 3 2], as in `Crop`; means nothing where a picture is not cropped.
        size: int64 [pictures 2], height and width in the end.
    """

    flip: np.ndarray
    cropped: np.ndarray
    crop: np.ndarray
    size: np.ndarray

    def __getitem__(self, index: int) -> Change:
        resized, corner, sides, size = ((int(a), int(b)) for a, b in (*self.crop[index], self.size[index]))
        return Change(bool(self.flip[index]), Crop(resized, corner, sides) if self.cropped[index] else None, size)


def draw_changes(sizes: np.ndarray, config: DetectionDataConfig, rng: np.random.Generator) -> Changes:
    """Changes of pictures in the ranges of mmdet's 1x and 3x pipelines.

    Args:
        sizes: int [pictures 2], height and width.
        config: what to draw from.
        rng: draws everything.
    """
    count = len(sizes)
    flip = rng.random(count) < config.flip
    scales = _draw_scales(config.scales, count, rng)
    cropped, crop, before = np.zeros(count, bool), np.zeros((count, 3, 2), np.int64), sizes
    if config.crop_scales:
        cropped = rng.random(count) < _CROPPED
        crop = _draw_crops(sizes, config, rng)
        before = np.where(cropped[:, None], crop[:, 2], sizes)
    return Changes(flip, cropped, crop, rescaled_sizes(before, scales))


def rescaled_sizes(sizes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """`rescaled_size` of many pictures: both [pictures 2], (height, width) and (longest, shortest)."""
    longest, shortest = scales[:, 0] / sizes.max(axis=1), scales[:, 1] / sizes.min(axis=1)
    factors = np.minimum(longest, shortest)[:, None]
    return np.maximum(1, (sizes * factors + 0.5).astype(np.int64))


def _draw_scales(scales: tuple[tuple[int, int], ...], count: int, rng: np.random.Generator) -> np.ndarray:
    """[count 2], each one of some."""
    return np.array(scales)[rng.integers(len(scales), size=count)]


def _draw_crops(sizes: np.ndarray, config: DetectionDataConfig, rng: np.random.Generator) -> np.ndarray:
    """[pictures 3 2], as in `Crop`. Source: mmdet `RandomCrop` with crop_type "absolute_range"."""
    resized = rescaled_sizes(sizes, _draw_scales(config.crop_scales, len(sizes), rng))
    smallest, largest = (np.minimum(resized, side) for side in config.crop_sides)
    sides = rng.integers(smallest, largest + 1)
    corner = rng.integers(0, resized - sides + 1)
    return np.stack([resized, corner, sides], axis=1)
