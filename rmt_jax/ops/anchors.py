"""Anchors: the boxes around every position of the maps of a pyramid that a dense head starts from."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

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
        _shifted(_base(stride, scales, ratios), size, stride) for size, stride in zip(map_sizes, strides, strict=True)
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


def _shifted(base: np.ndarray, size: Sequence[int], stride: int) -> Float[Array, "_ 4"]:
    """`base` at every position of a map."""
    row, column, which = _places(size, len(base))
    shifts = [(column * stride).astype(jnp.float32), (row * stride).astype(jnp.float32)]
    corners = [
        shift + sum(jnp.where(which == index, corner, 0) for index, corner in enumerate(corners))
        for shift, corners in zip(shifts * 2, base.T, strict=True)
    ]
    return jnp.stack(corners, axis=-1)


def _places(size: Sequence[int], per_position: int) -> tuple[Int[Array, " _"], Int[Array, " _"], Int[Array, " _"]]:
    """(row, column, number at the position) of each anchor of a map.

    Worked out in the program: as constants, the anchors of 800x1344 took 150 MB of a TPU's memory.
    """
    position, which = jnp.divmod(jnp.arange(size[0] * size[1] * per_position), per_position)
    return *jnp.divmod(position, size[1]), which


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
        row, column, _ = _places(size, per_position)
        return (row < height) & (column < width)

    return tuple(one(size, stride) for size, stride in zip(map_sizes, strides, strict=True))


def anchors_inside(anchors: Float[Array, "n 4"], size: Size) -> Bool[Array, " n"]:
    """Which anchors are wholly in a picture of some (height, width): mmdet's `allowed_border=0`."""
    height, width = jnp.asarray(size, jnp.float32)
    x1, y1, x2, y2 = anchors.T
    return (x1 >= 0) & (y1 >= 0) & (x2 < width) & (y2 < height)
