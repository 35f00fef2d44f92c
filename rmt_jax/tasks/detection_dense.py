"""What a head that looks at every position of a pyramid learns: RetinaNet, and the proposals of an R-CNN.

Losses come as `Total`s, sums and what they are divided by for each picture, since pictures are put together by the
task. Functions are for one picture where they say so, and `jax.vmap` adds the others.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int, Key, UInt8

from rmt_jax.models import DenseOutputs
from rmt_jax.ops import (
    MatchRule,
    Proposals,
    anchor_boxes,
    anchors_inside,
    anchors_on_maps,
    assign,
    encode_boxes,
    l1_loss,
    rpn_proposals,
    sample,
    sigmoid_cross_entropy,
    sigmoid_focal_loss,
    smooth_l1_loss,
)
from rmt_jax.ops.anchors import RATIOS
from rmt_jax.ops.sampling import Choice

RETINANET_RULE = MatchRule(0.5, 0.4, low_quality=0.0)
RPN_RULE = MatchRule(0.7, 0.3, low_quality=0.3)
RPN_SAMPLES, RPN_POSITIVE_SHARE = 256, 0.5

Losses = dict[str, "Total"]


class Truth(NamedTuple):
    """The objects of a picture, or of a batch with an axis in front.

    Attributes:
        boxes: in pixels of the canvas.
        labels: classes.
        valid: which rows are objects and no padding.
        image_size: (height, width) of the picture.
        pad_size: the multiples of 32 that upstream pads it to.
        masks: on the canvas, as bits (`ops.masks`); None for boxes alone.
    """

    boxes: Float[Array, "*batch objects 4"]
    labels: Int[Array, "*batch objects"]
    valid: Bool[Array, "*batch objects"]
    image_size: Int[Array, "*batch 2"]
    pad_size: Int[Array, "*batch 2"]
    masks: UInt8[Array, "*batch objects height bytes"] | None = None


class Total(NamedTuple):
    """A loss of each picture: the sum over its boxes, and what the sum is to be divided by."""

    total: Float[Array, "*batch"]
    divisor: Float[Array, "*batch"]


@dataclasses.dataclass(frozen=True)
class AnchorGrid:
    """Anchors on all levels of a pyramid over a canvas.

    Attributes:
        canvas: (height, width) in pixels.
        strides: of the levels.
        scales: sides of square anchors, in strides.
    """

    canvas: tuple[int, int]
    strides: tuple[int, ...]
    scales: tuple[float, ...]

    @property
    def sizes(self) -> list[list[int]]:
        """(height, width) of each level."""
        return [[-(-side // stride) for side in self.canvas] for stride in self.strides]

    def boxes(self) -> tuple[Float[Array, "_ 4"], ...]:
        """Of each level."""
        return anchor_boxes(self.sizes, self.strides, self.scales)

    def within(self, size: Any) -> tuple[Bool[Array, " _"], ...]:
        """Which of each level are at positions of a picture of some (height, width)."""
        return anchors_on_maps(self.sizes, self.strides, len(RATIOS) * len(self.scales), size)


def retinanet_losses(dense: DenseOutputs, grid: AnchorGrid, truth: Truth) -> Losses:
    """{"loss_cls", "loss_bbox"} of a batch: focal loss of all anchors, L1 of the offsets of those of objects.

    Both are divided by the number of the latter. Source: mmdet `RetinaHead.loss`.
    """
    anchors = jnp.concatenate(grid.boxes())

    def of_picture(logits: Array, deltas: Array, truth: Truth) -> Losses:
        on_maps = jnp.concatenate(grid.within(truth.pad_size))
        found = assign(anchors, on_maps, truth.boxes, truth.valid, RETINANET_RULE)
        background = logits.shape[-1]
        labels = jnp.where(found.positive, truth.labels[found.ground_truth], background)
        focal = sigmoid_focal_loss(logits, labels).sum(axis=-1)
        offsets = encode_boxes(anchors, truth.boxes[found.ground_truth])
        distance = l1_loss(deltas, offsets).sum(axis=-1)
        count = at_least_one(found.positive)
        return {
            "loss_cls": Total(jnp.where(found.positive | found.negative, focal, 0).sum(), count),
            "loss_bbox": Total(jnp.where(found.positive, distance, 0).sum(), count),
        }

    return jax.vmap(of_picture)(*_all_levels(dense), truth)


def rpn_losses(
    dense: DenseOutputs, grid: AnchorGrid, truth: Truth, keys: Key[Array, " batch"], *, cascade: bool, choice: Choice
) -> Losses:
    """{"loss_rpn_cls", "loss_rpn_bbox"} of a batch: of 256 anchors of a picture, up to half of them of objects.

    A cascade learns from no anchor that sticks out of its picture, and offsets by smooth L1. Source: mmdet `RPNHead`.

    Args:
        dense: outputs of the RPN.
        grid: its anchors.
        truth: the objects.
        keys: of each picture, for the samples.
        cascade: Cascade Mask R-CNN's RPN, otherwise Mask R-CNN's.
        choice: which anchors, see `sample`.
    """
    anchors = jnp.concatenate(grid.boxes())

    def of_picture(logits: Array, deltas: Array, truth: Truth, key: Array) -> Losses:
        counts = jnp.concatenate(grid.within(truth.pad_size))
        if cascade:
            counts &= anchors_inside(anchors, truth.image_size)
        found = assign(anchors, counts, truth.boxes, truth.valid, RPN_RULE)
        samples = sample(key, found, RPN_SAMPLES, RPN_POSITIVE_SHARE, choice)
        entropy = sigmoid_cross_entropy(logits[samples.box, 0], samples.positive)
        of_object = truth.boxes[found.ground_truth[samples.box]]
        offsets = encode_boxes(anchors[samples.box], of_object)
        distance = (smooth_l1_loss if cascade else l1_loss)(deltas[samples.box], offsets).sum(axis=-1)
        count = at_least_one(samples.positive) + at_least_one(samples.valid & ~samples.positive)
        return {
            "loss_rpn_cls": Total(jnp.where(samples.valid, entropy, 0).sum(), count),
            "loss_rpn_bbox": Total(jnp.where(samples.positive, distance, 0).sum(), count),
        }

    return jax.vmap(of_picture)(*_all_levels(dense), truth, keys)


def proposals_of(
    dense: DenseOutputs,
    grid: AnchorGrid,
    image_size: Int[Array, "batch 2"],
    extent: Int[Array, "batch 2"],
    *,
    before_nms: int,
    most: int,
) -> Proposals:
    """Proposals of each picture of a batch, from the positions of `extent`; see `rpn_proposals`."""
    boxes = grid.boxes()

    def of_picture(dense: DenseOutputs, size: Array, extent: Array) -> Proposals:
        logits = [level[:, 0] for level in dense.logits]
        within = grid.within(extent)
        return rpn_proposals(logits, dense.deltas, boxes, within, size, before_nms=before_nms, most=most)

    return jax.vmap(of_picture)(dense, image_size, extent)


def at_least_one(which: Bool[Array, " n"]) -> Float[Array, ""]:
    """The number of them, and 1 for none, as upstream counts the samples of a picture."""
    return jnp.maximum(which.sum(), 1).astype(jnp.float32)


def _all_levels(dense: DenseOutputs) -> tuple[Array, Array]:
    """[batch anchors classes] and [batch anchors 4]."""
    return jnp.concatenate(dense.logits, axis=1), jnp.concatenate(dense.deltas, axis=1)
