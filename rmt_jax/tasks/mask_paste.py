"""Masks of objects at the size of the picture, from those that a mask head predicts in their boxes."""

import math
from typing import Any

import numpy as np
from pycocotools import mask as run_lengths


def paste_mask(mask: np.ndarray, box: np.ndarray, size: tuple[int, int], threshold: float = 0.5) -> np.ndarray:
    """A mask of the whole picture, bool [*size]: the head's, interpolated bilinearly, where at least `threshold`.

    Pixel centres are mapped to the box, and outside the head's mask are zeros. A box without a width or a height takes
    the middle of the mask, on the two pixels around it.

    Source: mmdet `FCNMaskHead.get_seg_masks` on a CPU.

    Args:
        mask: probabilities, float32 [side side].
        box: (x1, y1, x2, y2) in pixels of the picture.
        size: (height, width) of the picture.
        threshold: on the probabilities.
    """
    x1, y1, x2, y2 = (np.float32(value) for value in box)
    (rows, at_rows), (columns, at_columns) = (
        _axis(start, stop, pixels, side)
        for start, stop, pixels, side in ((y1, y2, size[0], mask.shape[0]), (x1, x2, size[1], mask.shape[1]))
    )
    pasted = np.zeros(size, bool)
    pasted[rows, columns] = at_rows @ mask @ at_columns.T >= threshold
    return pasted


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """A mask, bool [height width], as COCO's compressed run lengths, ready for JSON: {"size", "counts"}."""
    encoded = run_lengths.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode()}


def _axis(start: np.float32, stop: np.float32, pixels: int, side: int) -> tuple[slice, np.ndarray]:
    """(the pixels of a box along one axis, and those around it; what each takes of the mask, [pixels side])."""
    first, last = max(math.floor(start) - 1, 0), min(math.ceil(stop) + 1, pixels)
    centers = np.arange(first, max(first, last), dtype=np.float32) + np.float32(0.5)
    middle = np.float32((side - 1) / 2)
    if stop == start:
        position = np.full_like(centers, middle)
    else:
        position = (centers - start) / (stop - start) * np.float32(side) - np.float32(0.5)
    weights = np.maximum(1 - np.abs(position[:, None] - np.arange(side, dtype=np.float32)), 0)
    return slice(first, max(first, last)), weights
