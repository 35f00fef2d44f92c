"""Outlines of objects to bitmaps, in the arithmetic of pycocotools."""

from collections.abc import Sequence

import numpy as np
from pycocotools import mask as run_lengths

from rmt_jax.data.interface import Outline


def bitmap(outline: Outline, size: tuple[int, int]) -> np.ndarray:
    """The pixels of an object, uint8 [height width] of 0 and 1. size: height and width of its picture.

    Source: mmdet `LoadAnnotations._poly2mask`, which is pycocotools.

    Raises:
        ValueError: there is no outline, or it is damaged.
    """
    if outline is None:
        raise ValueError("an object has no mask")
    if isinstance(outline, bytes):
        return run_lengths.decode({"size": list(size), "counts": outline})
    return run_lengths.decode(run_lengths.merge(run_lengths.frPyObjects([*outline], *size)))


def bitmaps(outlines: Sequence[Outline], size: tuple[int, int]) -> np.ndarray:
    """Of several objects, uint8 [objects height width]; see `bitmap`."""
    masks = np.zeros((len(outlines), *size), np.uint8)
    for mask, outline in zip(masks, outlines, strict=True):
        mask[:] = bitmap(outline, size)
    return masks


def pack(masks: np.ndarray) -> np.ndarray:
    """Eight pixels of a row a byte, the leftmost in the highest bit: uint8 [... width] to [... width/8]."""
    return np.packbits(masks, axis=-1)
