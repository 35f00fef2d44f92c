"""From the outputs of heads to boxes: the proposals of an RPN, and what a detector finds in a picture.

Functions are for one picture, `jax.vmap` adds others. Arrays of each level of the pyramid are lists, with the
positions, and the anchors at each, along one axis.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Num

from rmt_jax.ops.boxes import Size, Stds, decode_boxes
from rmt_jax.ops.nms import Detections, classwise_nms, greedy_nms

Scale = Num[Array, "2"]  # (vertical, horizontal): size of the network's input over that of the original picture


class Proposals(NamedTuple):
    """Boxes that may hold an object, by decreasing score; slots that are not valid are empty."""

    boxes: Float[Array, "slots 4"]
    scores: Float[Array, " slots"]
    valid: Bool[Array, " slots"]


def rpn_proposals(
    logits: Sequence[Float[Array, " _"]],
    deltas: Sequence[Float[Array, "_ 4"]],
    anchors: Sequence[Float[Array, "_ 4"]],
    valid: Sequence[Bool[Array, " _"]],
    size: Size,
    *,
    before_nms: int = 2000,
    most: int = 1000,
    iou_threshold: float = 0.7,
) -> Proposals:
    """The best anchors of each level, moved and clipped to the picture, without those that overlap a better one.

    Nothing is learned through them: no gradient reaches the head.

    Args:
        logits: that an anchor holds an object.
        deltas: from the anchors to the objects.
        anchors: of `anchor_boxes`.
        valid: anchors to consider, see `anchors_on_maps`.
        size: (height, width) of the picture.
        before_nms: anchors of each level to start from.
        most: proposals of all levels together.
        iou_threshold: IoU that two proposals of one level may have.

    Source: mmdet `RPNHead.get_bboxes`.
    """
    logits, deltas = lax.stop_gradient((logits, deltas))
    slots = min(before_nms, max(map(len, logits)))

    def best_of_level(logits: Array, deltas: Array, anchors: Array, valid: Array) -> tuple[Array, Array]:
        best, index = lax.top_k(jnp.where(valid, logits.astype(jnp.float32), -jnp.inf), min(slots, len(logits)))
        boxes = decode_boxes(anchors[index], deltas[index].astype(jnp.float32), size=size)
        missing = slots - len(best)
        return jnp.pad(best, (0, missing), constant_values=-jnp.inf), jnp.pad(boxes, ((0, missing), (0, 0)))

    levels = [best_of_level(*level) for level in zip(logits, deltas, anchors, valid, strict=True)]
    scores, boxes = (jnp.stack(parts) for parts in zip(*levels, strict=True))
    keep = jax.vmap(greedy_nms, in_axes=(0, 0, None))(boxes, scores > -jnp.inf, iou_threshold)
    best, index = lax.top_k(jnp.where(keep, scores, -jnp.inf).ravel(), min(most, scores.size))
    missing = most - len(best)
    best = jnp.pad(best, (0, missing), constant_values=-jnp.inf)
    chosen = jnp.pad(boxes.reshape(-1, 4)[index], ((0, missing), (0, 0)))
    return Proposals(chosen, jax.nn.sigmoid(best), best > -jnp.inf)


def retinanet_detections(
    logits: Sequence[Float[Array, "_ classes"]],
    deltas: Sequence[Float[Array, "_ 4"]],
    anchors: Sequence[Float[Array, "_ 4"]],
    valid: Sequence[Bool[Array, " _"]],
    size: Size,
    scale: Scale,
    *,
    before_nms: int = 1000,
    score_threshold: float = 0.05,
    iou_threshold: float = 0.5,
    most: int = 100,
) -> Detections:
    """What a RetinaNet finds in a picture, in coordinates of the original.

    Args:
        logits: of each class, for a sigmoid.
        deltas: from the anchors to the objects.
        anchors: of `anchor_boxes`.
        valid: anchors to consider, see `anchors_on_maps`.
        size: (height, width) of the picture.
        scale: size of the picture over that of the original, (vertical, horizontal).
        before_nms: anchors of each level to start from, those with the highest score in any class.
        score_threshold: objects must have more.
        iou_threshold: IoU that two objects of a class may have.
        most: objects.

    Source: mmdet `RetinaHead.get_bboxes`.
    """

    def best_of_level(logits: Array, deltas: Array, anchors: Array, valid: Array) -> tuple[Array, Array]:
        best = jnp.where(valid, logits.max(axis=-1).astype(jnp.float32), -jnp.inf)
        index = lax.top_k(best, min(before_nms, len(best)))[1]
        boxes = decode_boxes(anchors[index], deltas[index].astype(jnp.float32), size=size)
        scores = jax.nn.sigmoid(logits[index].astype(jnp.float32))
        return boxes, jnp.where(valid[index, None], scores, 0)

    levels = [best_of_level(*level) for level in zip(logits, deltas, anchors, valid, strict=True)]
    boxes, scores = (jnp.concatenate(parts) for parts in zip(*levels, strict=True))
    boxes = _to_original(boxes, scale)[:, None]
    return classwise_nms(boxes, scores, score_threshold=score_threshold, iou_threshold=iou_threshold, most=most)


def rcnn_detections(
    rois: Float[Array, "n 4"],
    valid: Bool[Array, " n"],
    logits: Float[Array, "n _"],
    deltas: Float[Array, "n classes 4"],
    size: Size,
    scale: Scale,
    *,
    stds: Stds,
    score_threshold: float = 0.05,
    iou_threshold: float = 0.5,
    most: int = 100,
) -> Detections:
    """What the box head of an R-CNN finds in a picture, in coordinates of the original.

    Args:
        rois: regions that the head looked at.
        valid: regions to consider.
        logits: of each class and, last, of background, for a softmax.
        deltas: of each class, from the region to the object.
        size: (height, width) of the picture.
        scale: size of the picture over that of the original, (vertical, horizontal).
        stds: of the offsets.
        score_threshold: objects must have more.
        iou_threshold: IoU that two objects of a class may have.
        most: objects.

    Source: mmdet `BBoxHead.get_bboxes`.
    """
    boxes = decode_boxes(rois[:, None], deltas.astype(jnp.float32), stds, size)
    scores = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)[:, :-1]
    return classwise_nms(
        _to_original(boxes, scale),
        jnp.where(valid[:, None], scores, 0),
        score_threshold=score_threshold,
        iou_threshold=iou_threshold,
        most=most,
    )


def _to_original(boxes: Float[Array, "*boxes 4"], scale: Scale) -> Float[Array, "*boxes 4"]:
    vertical, horizontal = scale.astype(jnp.float32)
    return boxes / jnp.stack([horizontal, vertical, horizontal, vertical])
