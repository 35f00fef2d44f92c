"""Boxes: their overlaps, and the offsets from one to another that heads of detectors learn.

A box is (x1, y1, x2, y2) in pixels, float32. Sides are x2 - x1 and y2 - y1, without the + 1 of older code.
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Num

Size = Sequence[int] | Num[Array, "2"]  # (height, width); an array where it differs between the pictures of a batch
Stds = tuple[float, float, float, float]  # of the offsets (dx, dy, dw, dh)

LARGEST_LOG_SCALE = math.log(1000 / 16)  # a decoded side is at most that of the box times 1000 / 16
_EPSILON = 1e-6  # upstream's, a floor of areas that are divided by
_SHORTEST = 1e-6  # side of a box, where offsets are measured in sides


def box_area(boxes: Float[Array, "*boxes 4"]) -> Float[Array, "*boxes"]:
    """Width times height. Negative where one of the two is."""
    return _rounded_product(boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1])


def box_iou(a: Float[Array, "n 4"], b: Float[Array, "m 4"]) -> Float[Array, "n m"]:
    """Intersection over union of each of `a` with each of `b`; 0 where both are empty.

    Every operation is rounded to float32 by itself and in upstream's order, so that overlaps which are equal there are
    equal here: the low-quality rule of `assign` decides by equality. Source: mmdet `bbox_overlaps`.
    """
    intersection, union = overlap(a[:, None], b[None])
    return intersection / jnp.maximum(union, _EPSILON)


def giou(a: Float[Array, "*boxes 4"], b: Float[Array, "*boxes 4"]) -> Float[Array, "*boxes"]:
    """Generalised intersection over union of pairs, in [-1, 1]: IoU less the empty share of the box around both.

    Source: arXiv 1902.09630, mmdet `bbox_overlaps(mode="giou", is_aligned=True)`.
    """
    intersection, union = overlap(a, b)
    union = jnp.maximum(union, _EPSILON)
    sides = jnp.maximum(a[..., 2:], b[..., 2:]) - jnp.minimum(a[..., :2], b[..., :2])
    around = jnp.maximum(jnp.prod(jnp.maximum(sides, 0), axis=-1), _EPSILON)
    return intersection / union - (around - union) / around


def overlap(
    a: Float[Array, "*#boxes 4"], b: Float[Array, "*#boxes 4"]
) -> tuple[Float[Array, "*boxes"], Float[Array, "*boxes"]]:
    """(area of the intersection, area of the union) of boxes that broadcast against each other."""
    width = jnp.minimum(a[..., 2], b[..., 2]) - jnp.maximum(a[..., 0], b[..., 0])
    height = jnp.minimum(a[..., 3], b[..., 3]) - jnp.maximum(a[..., 1], b[..., 1])
    # At exactly 0 the gradient is that of the product, as PyTorch's clamp has it.
    intersection = jnp.where((width >= 0) & (height >= 0), width * height, 0)
    return intersection, box_area(a) + box_area(b) - intersection


def clip_boxes(boxes: Float[Array, "*boxes 4"], size: Size) -> Float[Array, "*boxes 4"]:
    """The parts of boxes in a picture of some (height, width): x in [0, width], y in [0, height]."""
    height, width = jnp.asarray(size, jnp.float32)
    return jnp.clip(boxes, 0, jnp.stack([width, height, width, height]))


def encode_boxes(
    boxes: Float[Array, "*boxes 4"], targets: Float[Array, "*boxes 4"], stds: Stds = (1.0, 1.0, 1.0, 1.0)
) -> Float[Array, "*boxes 4"]:
    """Offsets (dx, dy, dw, dh) from boxes to targets: of the centre in sides, of the sides as logarithms; over `stds`.

    Sides count as at least 1e-6, so that the offsets of padding are finite. Source: mmdet `DeltaXYWHBBoxCoder`.
    """
    center, sides = _center_and_sides(boxes)
    target_center, target_sides = _center_and_sides(targets)
    sides, target_sides = jnp.maximum(sides, _SHORTEST), jnp.maximum(target_sides, _SHORTEST)
    offsets = jnp.concatenate([(target_center - center) / sides, jnp.log(target_sides / sides)], axis=-1)
    return offsets / jnp.asarray(stds, jnp.float32)


def decode_boxes(
    boxes: Float[Array, "*#boxes 4"],
    deltas: Float[Array, "*boxes 4"],
    stds: Stds = (1.0, 1.0, 1.0, 1.0),
    size: Size | None = None,
) -> Float[Array, "*boxes 4"]:
    """The boxes that offsets lead to, the inverse of `encode_boxes`. Source: mmdet `DeltaXYWHBBoxCoder`.

    Args:
        boxes: broadcast against the offsets: [n 1 4] where each class has its own.
        deltas: (dx, dy, dw, dh). Those of the sides are cut to +-`LARGEST_LOG_SCALE`.
        stds: of the offsets.
        size: (height, width) of the picture to clip to.
    """
    center, sides = _center_and_sides(boxes)
    offsets = deltas * jnp.asarray(stds, jnp.float32)
    center = center + sides * offsets[..., :2]
    half = sides * jnp.exp(jnp.clip(offsets[..., 2:], -LARGEST_LOG_SCALE, LARGEST_LOG_SCALE)) / 2
    decoded = jnp.concatenate([center - half, center + half], axis=-1)
    return decoded if size is None else clip_boxes(decoded, size)


def _center_and_sides(boxes: Float[Array, "*boxes 4"]) -> tuple[Float[Array, "*boxes 2"], Float[Array, "*boxes 2"]]:
    return (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]


def _rounded_product(a: Float[Array, "*axes"], b: Float[Array, "*axes"]) -> Float[Array, "*axes"]:
    """a * b, rounded before anything is added to it.

    Compilers for CPUs and GPUs make one instruction with one rounding of a product and a sum, also across
    `lax.optimization_barrier`; a maximum keeps the two apart.
    """
    return jnp.maximum(a * b, jnp.finfo(jnp.float32).min)
