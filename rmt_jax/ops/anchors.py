"""Anchors: the boxes around every position of the maps of a pyramid that a dense head starts from."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float

from rmt_jax.ops.boxes import Size

RATIOS = (0.5, 1.0, 2.0)  # height / width
RPN_SCALES = (8.0,)
RETINANET_SCALES = tuple(4 * 2 ** (octave / 3) for octave in range(3))

Sizes = Sequence[Sequence[int]]


def anchor_boxes(
    map_sizes: Sizes, strides: Sequence[int], scales: Sequence[float], ratios: Sequence[float] = RATIOS
) -> tuple[Float[Array, "_ 4"], ...]:
    """Anchors of each map, by row, column, ratio and scale; centred on (column, row) * stride and not clipped.

    Upstream's to the bit: float32 boxes around the origin, shifted. Source: mmdet `AnchorGenerator`.

    Args:
        map_sizes: (height, width) of each map.
        strides: of each map, in pixels.
        scales: sides of square anchors, in strides.
        ratios: height / width; the area is the same for all.

    Raises:
        ValueError: not one stride for each map.
    """
    if len(map_sizes) != len(strides):
        raise ValueError(f"{len(map_sizes)} maps and {len(strides)} strides: expected one stride for each map.")
    return tuple(
        jnp.asarray(_shifted(_base(stride, scales, ratios), size, stride))
        for size, stride in zip(map_sizes, strides, strict=True)
    )


def _base(stride: int, scales: Sequence[float], ratios: Sequence[float]) -> np.ndarray:
    """[ratios * scales 4] around the origin."""
    heights = np.sqrt(np.asarray(ratios, np.float32))
    widths = 1 / heights
    x, y = (
        ((np.float32(stride) * sides[:, None]) * np.asarray(scales, np.float32)).ravel() / 2
        for sides in (widths, heights)
    )
    return np.stack([-x, -y, x, y], axis=1)


def _shifted(base: np.ndarray, size: Sequence[int], stride: int) -> np.ndarray:
    y, x = (np.arange(side, dtype=np.float32) * stride for side in size)
    grid = np.broadcast_arrays(x[None, :, None], y[:, None, None])
    return (np.concatenate([*grid, *grid], axis=-1)[:, :, None] + base).reshape(-1, 4)


def anchors_on_maps(
    map_sizes: Sizes, strides: Sequence[int], per_position: int, padded_size: Size
) -> tuple[Bool[Array, " _"], ...]:
    """Which anchors belong to a picture on a larger canvas: those at positions below ceil(padded size / stride).

    Args:
        map_sizes: (height, width) of each map of the canvas.
        strides: of each map, in pixels.
        per_position: anchors at each position.
        padded_size: (height, width) that upstream pads the picture to; may be traced.

    Source: mmdet `AnchorGenerator.valid_flags`.
    """
    padded = jnp.asarray(padded_size, jnp.int32)

    def one(size: Sequence[int], stride: int) -> Bool[Array, " _"]:
        height, width = -(-padded // stride)
        inside = (jnp.arange(size[0]) < height)[:, None] & (jnp.arange(size[1]) < width)[None]
        return jnp.repeat(inside.ravel(), per_position)

    return tuple(one(size, stride) for size, stride in zip(map_sizes, strides, strict=True))


def anchors_inside(anchors: Float[Array, "n 4"], size: Size) -> Bool[Array, " n"]:
    """Which anchors are wholly in a picture of some (height, width): mmdet's `allowed_border=0`."""
    height, width = jnp.asarray(size, jnp.float32)
    x1, y1, x2, y2 = anchors.T
    return (x1 >= 0) & (y1 >= 0) & (x2 < width) & (y2 < height)
