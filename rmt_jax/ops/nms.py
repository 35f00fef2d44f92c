"""Non-maximum suppression: of boxes that overlap, the one with the highest score."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from rmt_jax.ops.boxes import overlap


class Detections(NamedTuple):
    """Objects found in a picture, by decreasing score; slots that are not valid are empty."""

    boxes: Float[Array, "slots 4"]
    scores: Float[Array, " slots"]
    labels: Int[Array, " slots"]
    valid: Bool[Array, " slots"]


def greedy_nms(boxes: Float[Array, "n 4"], valid: Bool[Array, " n"], threshold: float) -> Bool[Array, " n"]:
    """Which boxes remain when each, from the first to the last, removes those behind it that overlap it by more.

    What remains is the only solution of: a box remains if none before it that remains overlaps it. It is found by
    applying that rule to all boxes at once until nothing changes, after as many rounds as the longest chain of boxes of
    which each removes the next: less than ten for the 2000 proposals of a map.

    Args:
        boxes: by decreasing score.
        valid: others neither remain nor remove any.
        threshold: IoU that is still allowed.

    Source: mmcv `nms`, without its shift of coordinates: `jax.vmap` over the levels or classes.
    """
    earlier = jnp.tri(len(boxes), k=-1, dtype=bool).T & valid[:, None]
    removes = earlier & _overlaps(boxes[:, None], boxes[None], threshold)

    def rule(keep: Bool[Array, " n"]) -> Bool[Array, " n"]:
        return valid & ~(removes & keep[:, None]).any(axis=0)

    def step(state: tuple[Array, Array]) -> tuple[Array, Array]:
        return state[1], rule(state[1])

    return lax.while_loop(lambda state: (state[0] != state[1]).any(), step, (valid, rule(valid)))[1]


def classwise_nms(
    boxes: Float[Array, "n _ 4"],
    scores: Float[Array, "n classes"],
    *,
    score_threshold: float = 0.05,
    iou_threshold: float = 0.5,
    most: int = 100,
) -> Detections:
    """The `most` best of all pairs of a box and a class, without those that overlap a better box of their class.

    The best pair that is left is taken, and removes the pairs of its class that overlap it, `most` times: exact
    whatever the number of pairs, and nothing is sorted.

    Args:
        boxes: [n classes 4], or [n 1 4] where all classes share them.
        scores: positive numbers.
        score_threshold: pairs must have more.
        iou_threshold: IoU that is still allowed.
        most: the number of slots.

    Source: mmdet `multiclass_nms`.
    """
    by_class, num_classes = jnp.swapaxes(boxes, 0, 1), scores.shape[1]

    def take_best(left: Float[Array, "classes n"], _: None) -> tuple[Array, tuple[Array, Array, Array]]:
        label, index = jnp.divmod(left.argmax(), len(boxes))
        of_class = by_class[label if len(by_class) == num_classes else 0]
        box, score = of_class[index], left[label, index]
        removed = _overlaps(of_class, box, iou_threshold) | (jnp.arange(len(boxes)) == index)
        return left.at[label].set(jnp.where(removed, 0, left[label])), (box, score, label)

    left = jnp.where(scores > score_threshold, scores, 0).T
    best_boxes, best_scores, labels = lax.scan(take_best, left, length=most)[1]
    return Detections(best_boxes, best_scores, labels, best_scores > 0)


def _overlaps(a: Float[Array, "*#boxes 4"], b: Float[Array, "*#boxes 4"], threshold: float) -> Bool[Array, "*boxes"]:
    """Whether the IoU is above a threshold. Boxes without an area overlap none."""
    intersection, union = overlap(a, b)
    return intersection / jnp.where(union > 0, union, 1) > threshold
