"""RoIAlign: the part of a map that lies in a box, brought to a fixed size.

The mean of equally spaced samples in a bin, each interpolated bilinearly, is separable: a box is a matrix [bins cells]
for the rows and one for the columns, and RoIAlign two products with them. So the number of samples may depend on the
box, as upstream's does, in arrays of fixed shapes; and nothing is gathered, nor scattered for the gradient.

Source: arXiv 1703.06870, section 3; mmcv `RoIAlign` with `aligned=True`.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int

FINEST = 56  # pixels: level floor(log2(sqrt(area) / FINEST)), so that boxes below 112 are taken from the finest map


def roi_align(
    x: Float[Array, "height width channels"],
    rois: Float[Array, "n 4"],
    size: int,
    *,
    scale: float,
    sampling_ratio: int = 0,
    chunk: int = 64,
) -> Float[Array, "n size size channels"]:
    """The map in each box at size x size bins, in x's type and computed in float32. No gradient reaches the boxes.

    Samples up to one position outside the map take its border, those further outside are 0. A box without a width or a
    height is 0.

    Args:
        x: of one picture.
        rois: boxes in pixels, no longer than the map.
        size: bins along each side.
        scale: positions of the map per pixel.
        sampling_ratio: samples in a bin along each axis; 0 for as many as the bin is long, rounded up, as upstream.
        chunk: boxes at once. Each needs 4 size channels min(height, width) bytes.
    """
    return multilevel_roi_align([x], rois, size, scales=[scale], sampling_ratio=sampling_ratio, chunk=chunk)


def multilevel_roi_align(
    maps: Sequence[Float[Array, "_ _ channels"]],
    rois: Float[Array, "n 4"],
    size: int,
    *,
    scales: Sequence[float],
    sampling_ratio: int = 0,
    chunk: int = 64,
    valid: Sequence[Int[Array, "2"]] | None = None,
) -> Float[Array, "n size size channels"]:
    """`roi_align` of each box from the map that suits its size; see `roi_levels`.

    Every box is taken from every map, with weights of 0 from all but one, for maps differ in shape. A fixed
    `sampling_ratio` is not faster: 2 is for models that were trained so, and about 1 % from upstream's features.

    Args:
        maps: of one picture, from the finest to the coarsest.
        rois: boxes in pixels, no longer than the maps.
        size: bins along each side.
        scales: positions of each map per pixel.
        sampling_ratio: samples in a bin along each axis; 0 for as many as the bin is long, rounded up, as upstream.
        chunk: boxes at once. Each needs 4 size channels min(height, width) bytes for every map.
        valid: (height, width) of the picture on each map, which ends there; None where it fills the maps.

    Raises:
        ValueError: not one scale for each map.

    Source: mmdet `SingleRoIExtractor`.
    """
    if len(maps) != len(scales):
        raise ValueError(f"{len(maps)} maps and {len(scales)} scales: expected one scale for each map.")

    def one(box_and_level: tuple[Array, Array]) -> Array:
        box, own_level = box_and_level
        total = jnp.zeros((size, size, maps[0].shape[-1]), jnp.float32)
        for level, (x, scale) in enumerate(zip(maps, scales, strict=True)):
            end = None if valid is None else valid[level]
            rows, columns = box_weights(box * scale - 0.5, x.shape[:2], size, sampling_ratio, end)
            rows = jnp.where(level == own_level, rows, 0)
            total += weighted(x.astype(jnp.float32), rows, columns)
        return total.astype(maps[0].dtype)

    rois = lax.stop_gradient(rois)
    return lax.map(one, (rois, roi_levels(rois, len(maps))), batch_size=chunk)


def roi_levels(rois: Float[Array, "n 4"], levels: int) -> Int[Array, " n"]:
    """Of which map a box is taken: sides below 112 pixels (square boxes) of map 0, below 224 of map 1, and so on."""
    sides = rois[:, 2:] - rois[:, :2]
    doublings = jnp.log2(jnp.sqrt(sides[:, 0] * sides[:, 1]) / FINEST + 1e-6)
    return jnp.clip(jnp.floor(doublings), 0, levels - 1).astype(jnp.int32)


def box_weights(
    box: Float[Array, "4"],
    shape: Sequence[int],
    size: int,
    sampling_ratio: int = 0,
    valid: Int[Array, "2"] | None = None,
) -> tuple[Float[Array, "size height"], Float[Array, "size width"]]:
    """What a map of some (height, width) is multiplied with, for a box in its positions: rows, and columns.

    valid: (height, width) of the picture on it, where it is smaller.
    """
    x1, y1, x2, y2 = box
    height, width = shape if valid is None else valid
    return (
        bin_weights(y1, y2 - y1, shape[0], size, sampling_ratio, height),
        bin_weights(x1, x2 - x1, shape[1], size, sampling_ratio, width),
    )


def weighted(
    x: Float[Array, "height width *channels"], rows: Float[Array, "p height"], columns: Float[Array, "q width"]
) -> Float[Array, "p q *channels"]:
    """Bins of a map from the weights of its rows and columns."""
    return jnp.einsum("ph,hw...,qw->pq...", rows, x, columns, precision=lax.Precision.HIGHEST)


def bin_weights(
    start: Float[Array, ""],
    length: Float[Array, ""],
    cells: int,
    bins: int,
    sampling_ratio: int = 0,
    valid: int | Int[Array, ""] | None = None,
) -> Float[Array, "bins cells"]:
    """How much of each cell goes into each bin along one axis: the mean of samples, interpolated linearly.

    Args:
        start: of the first bin, in cells: 0 is the middle of the first cell.
        length: of all bins together, at most `cells`.
        cells: positions of the map.
        bins: to cut the length into.
        sampling_ratio: samples in a bin; 0 for the length of a bin, rounded up.
        valid: how many of the cells there are, others being padding; None for all of them.
    """
    end = jnp.asarray(cells if valid is None else valid, jnp.float32)
    bin_length = length / bins
    most = sampling_ratio or -(-cells // bins)
    count = jnp.full((), sampling_ratio, jnp.float32) if sampling_ratio else jnp.clip(jnp.ceil(bin_length), 0, most)
    divisor = jnp.maximum(count, 1)
    sample = jnp.arange(most, dtype=jnp.float32)
    position = start + jnp.arange(bins, dtype=jnp.float32)[:, None] * bin_length + (sample + 0.5) * bin_length / divisor
    counts = (sample < count) & (position >= -1) & (position <= end)
    distance = jnp.abs(position.clip(0, end - 1)[..., None] - jnp.arange(cells, dtype=jnp.float32))
    return jnp.where(counts[..., None], jnp.maximum(1 - distance, 0), 0).sum(axis=1) / divisor
