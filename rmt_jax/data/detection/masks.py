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


def decompress(data: bytes) -> np.ndarray:
    """COCO's compressed run lengths as numbers of pixels, int64 [runs].

    pycocotools does the same, but where they are too few for a picture it leaves the rest of a mask as it found it.

    A number is cut into pieces of five bits, the lowest first, with a sixth bit where another piece follows, and the
    highest bit of the last is its sign. From the fourth on, it is the difference to the number before the last.

    Raises:
        ValueError: the bytes are no such numbers.
    """
    pieces = np.frombuffer(data, np.uint8).astype(np.int64) - ord("0")
    if not len(pieces) or pieces.min() < 0 or pieces.max() > 63 or pieces[-1] & 32:
        raise ValueError("not in COCO's compressed form")
    last = np.flatnonzero(~pieces & 32)
    first = np.concatenate([[0], last[:-1] + 1])
    place = 5 * (np.arange(len(pieces)) - np.repeat(first, last + 1 - first))
    runs = np.add.reduceat((pieces & 31) << place, first) - np.where(pieces[last] & 16, 32 << place[last], 0)
    runs[1::2], runs[2::2] = np.cumsum(runs[1::2]), np.cumsum(runs[2::2])
    return runs


def bitmaps(outlines: Sequence[Outline], size: tuple[int, int]) -> np.ndarray:
    """Of several objects, uint8 [objects height width]; see `bitmap`."""
    masks = np.zeros((len(outlines), *size), np.uint8)
    for mask, outline in zip(masks, outlines, strict=True):
        mask[:] = bitmap(outline, size)
    return masks


def pack(masks: np.ndarray) -> np.ndarray:
    """Eight pixels of a row a byte, the leftmost in the highest bit: uint8 [... width] to [... width/8]."""
    return np.packbits(masks, axis=-1)
