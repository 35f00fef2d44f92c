"""Which box answers for which object: by overlap, with upstream's rule for objects that no box overlaps well."""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from rmt_jax.ops.boxes import box_iou

IoU = float


@dataclasses.dataclass(frozen=True)
class MatchRule:
    """When a box is taken for an object, and when for background; between the two it is ignored.

    Attributes:
        positive: a box with this IoU and more belongs to the object that it overlaps best.
        negative: a box that overlaps every object by less than this is background.
        low_quality: an object also gets the boxes that overlap it best, if by at least this much; None for a rule
            without. 0 gives every object boxes, those that touch nothing if it touches none.
    """

    positive: IoU
    negative: IoU
    low_quality: IoU | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.negative <= self.positive <= 1:
            raise ValueError(
                f"positive={self.positive}, negative={self.negative}: expected 0 <= negative <= positive <= 1, for a "
                f"box cannot be an object and background."
            )


class Assignment(NamedTuple):
    """What boxes are taken for. Neither positive nor negative: ignored."""

    ground_truth: Int[Array, " n"]  # the object of a positive box; without a meaning for others
    positive: Bool[Array, " n"]
    negative: Bool[Array, " n"]
    iou: Float[Array, " n"]  # with the object that it overlaps best


def assign(
    boxes: Float[Array, "n 4"],
    valid_boxes: Bool[Array, " n"],
    ground_truths: Float[Array, "m 4"],
    valid_ground_truths: Bool[Array, " m"],
    rule: MatchRule,
) -> Assignment:
    """Match the boxes of one picture with its objects. Both may be padded: what is not valid has no effect at all.

    By the low-quality rule all boxes go to an object whose IoU with it is the largest of any, exactly; where several
    objects claim a box, to the last of them. That depends on roundings for boxes that overlap an object equally but for
    these, which anchors often do. See `box_iou`.

    Needs 4 n m bytes for a picture: 107 MB for 100 objects and the anchors of an RPN at 800x1344.

    Source: mmdet `MaxIoUAssigner`.
    """
    counts = valid_ground_truths[:, None] & valid_boxes[None]
    # Kept in memory rather than computed for each use, where it might be rounded in another way and equal nothing.
    iou = lax.optimization_barrier(jnp.where(counts, box_iou(ground_truths, boxes), -1))
    best, ground_truth = iou.max(axis=0), iou.argmax(axis=0)
    positive, negative = best >= rule.positive, valid_boxes & (best < rule.negative)
    if rule.low_quality is not None:
        best_of_object = iou.max(axis=1, keepdims=True)
        claims = counts & (best_of_object >= rule.low_quality) & (iou == best_of_object)
        last = jnp.where(claims, jnp.arange(len(ground_truths))[:, None], -1).max(axis=0)
        claimed = last >= 0
        ground_truth = jnp.where(claimed, last, ground_truth)
        positive, negative = positive | claimed, negative & ~claimed
    return Assignment(ground_truth, positive, negative, jnp.maximum(best, 0))


def prepend_ground_truths(
    boxes: Float[Array, "n 4"],
    assignment: Assignment,
    ground_truths: Float[Array, "m 4"],
    valid_ground_truths: Bool[Array, " m"],
) -> tuple[Float[Array, "m+n 4"], Assignment]:
    """Boxes with the objects before them, each assigned to itself. Padding is neither positive nor negative.

    After `assign`, as upstream does: objects among the boxes would overlap themselves best.

    Source: mmdet `BaseSampler.sample(add_gt_as_proposals=True)`.
    """
    own = Assignment(
        ground_truth=jnp.arange(len(ground_truths), dtype=assignment.ground_truth.dtype),
        positive=valid_ground_truths,
        negative=jnp.zeros_like(valid_ground_truths),
        iou=valid_ground_truths.astype(jnp.float32),
    )
    together = Assignment(*(jnp.concatenate(pair) for pair in zip(own, assignment, strict=True)))
    return jnp.concatenate([ground_truths, boxes]), together
