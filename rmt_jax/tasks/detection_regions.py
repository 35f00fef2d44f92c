"""What the second stage of an R-CNN learns: class, box and mask of regions, once or in a cascade."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int, Key

from rmt_jax.models import MaskRCNN
from rmt_jax.ops import (
    MatchRule,
    Samples,
    Valid,
    assign,
    decode_boxes,
    encode_boxes,
    giou_loss,
    l1_loss,
    mask_targets,
    multilevel_roi_align,
    prepend_ground_truths,
    sample,
    sigmoid_cross_entropy,
    softmax_cross_entropy,
    strided,
)
from rmt_jax.ops.boxes import Stds
from rmt_jax.ops.sampling import Choice
from rmt_jax.tasks.detection_dense import Losses, Total, Truth

POSITIVE_SHARE = 0.25  # of the samples, at most
REGION_LEVELS = 4  # regions come from all levels but the coarsest
BOX_SIDE, MASK_SIDE, MASK_BINS = 7, 14, 28  # of the regions that the heads see, and of the predicted masks
GIOU_WEIGHT = 10.0


@dataclasses.dataclass(frozen=True)
class Stage:
    """One look at regions.

    Attributes:
        rule: which of them are of objects.
        stds: of the offsets of boxes.
        weight: of the stage's losses.
    """

    rule: MatchRule
    stds: Stds
    weight: float = 1.0


STAGES: dict[str, tuple[Stage, ...]] = {
    "mask_rcnn": (Stage(MatchRule(0.5, 0.5, low_quality=0.5), (0.1, 0.1, 0.2, 0.2)),),
    "cascade_mask_rcnn": (
        Stage(MatchRule(0.5, 0.5), (0.1, 0.1, 0.2, 0.2)),
        Stage(MatchRule(0.6, 0.6), (0.05, 0.05, 0.1, 0.1), 0.5),
        Stage(MatchRule(0.7, 0.7), (0.033, 0.033, 0.067, 0.067), 0.25),
    ),
}


class Boxes(NamedTuple):
    """Where objects may be, in each picture of a batch."""

    boxes: Float[Array, "batch n 4"]
    valid: Bool[Array, "batch n"]


@dataclasses.dataclass(frozen=True)
class Pyramid:
    """The levels that regions are cut out of.

    Attributes:
        levels: of a batch, from the finest.
        strides: of each, in pixels.
        extent: (height, width) of the pictures in pixels where they do not fill the canvas.
        sampling_ratio: see `multilevel_roi_align`.
    """

    levels: tuple[Float[Array, "batch _ _ channels"], ...]
    strides: tuple[int, ...]
    extent: Valid | None
    sampling_ratio: int

    def regions(self, boxes: Float[Array, "batch n 4"], side: int) -> Float[Array, "regions _ _ channels"]:
        """[batch * n side side channels], of all pictures in one row."""
        scales = [1 / stride for stride in self.strides]
        sizes = None if self.extent is None else [strided(self.extent, stride) for stride in self.strides]

        def of_picture(levels: Any, boxes: Array, sizes: Any) -> Array:
            return multilevel_roi_align(
                levels, boxes, side, scales=scales, sampling_ratio=self.sampling_ratio, valid=sizes
            )

        with jax.named_scope("roi_align"):
            regions = jax.vmap(of_picture)(self.levels, boxes, sizes)
        return regions.reshape(-1, *regions.shape[2:])


def region_losses(
    model: MaskRCNN,
    pyramid: Pyramid,
    proposals: Boxes,
    truth: Truth,
    keys: Key[Array, " batch"],
    *,
    slots: int,
    choice: Choice,
) -> Losses:
    """{"loss_cls", "loss_bbox", "loss_mask"} of a batch, of a cascade "s0_loss_cls" and so on, weighted.

    Regions are sampled of each picture, up to a quarter of them of objects, which are proposals too. Each stage of a
    cascade begins with the samples of the one before where it has moved them, but for the objects themselves.
    Source: mmdet `StandardRoIHead`, `CascadeRoIHead`.

    Args:
        model: in training mode.
        pyramid: its levels.
        proposals: of the RPN.
        truth: the objects.
        keys: of each picture, for the samples.
        slots: for samples of a picture, see `sample`; upstream takes 512.
        choice: which regions, see `sample`.
    """
    losses: Losses = {}
    stages = STAGES[model.HEAD]
    for index, stage in enumerate(stages):
        stage_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, index)
        samples, boxes, of_object = _sampled(stage, proposals, truth, stage_keys, slots, choice)
        taken = samples.valid.reshape(-1)
        logits, deltas = model.boxes(pyramid.regions(boxes, BOX_SIDE), stage=index, taken=taken)
        logits, deltas = (x.reshape(*boxes.shape[:2], *x.shape[1:]) for x in (logits, deltas))
        labels = jnp.where(samples.positive, _rows(truth.labels, of_object), deltas.shape[2])
        of_stage = _box_losses(stage, len(stages) > 1, samples, boxes, logits, deltas, labels, truth, of_object)
        if truth.masks is not None:
            of_stage["loss_mask"] = _mask_loss(model, index, pyramid, samples, boxes, labels, truth, of_object)
        prefix = f"s{index}_" if len(stages) > 1 else ""
        losses |= {prefix + name: Total(stage.weight * loss.total, loss.divisor) for name, loss in of_stage.items()}
        if index + 1 < len(stages):
            best = jnp.where(samples.positive, labels, logits[..., :-1].argmax(axis=-1))
            moved = refined(stage, boxes, of_class(deltas, best, axis=2), truth.image_size)
            objects = truth.valid.shape[1]  # in front of the proposals
            proposals = Boxes(moved, samples.valid & (samples.box >= objects))
    return losses


def refined(
    stage: Stage, boxes: Float[Array, "batch n 4"], deltas: Float[Array, "batch n 4"], image_size: Int[Array, "batch 2"]
) -> Float[Array, "batch n 4"]:
    """Boxes moved by a stage and clipped to their pictures; no gradient goes through them."""
    moved = jax.vmap(lambda boxes, deltas, size: decode_boxes(boxes, deltas, stage.stds, size))(
        boxes, deltas, image_size
    )
    return lax.stop_gradient(moved)


def _sampled(
    stage: Stage, proposals: Boxes, truth: Truth, keys: Array, slots: int, choice: Choice
) -> tuple[Samples, Float[Array, "batch slots 4"], Int[Array, "batch slots"]]:
    """(samples of the objects and proposals of each picture, their boxes, the object of each)."""

    def of_picture(proposals: Boxes, truth: Truth, key: Array) -> tuple[Samples, Array, Array]:
        found = assign(proposals.boxes, proposals.valid, truth.boxes, truth.valid, stage.rule)
        boxes, found = prepend_ground_truths(proposals.boxes, found, truth.boxes, truth.valid)
        samples = sample(key, found, slots, POSITIVE_SHARE, choice)
        return samples, boxes[samples.box], found.ground_truth[samples.box]

    return jax.vmap(of_picture)(proposals, truth, keys)


def _box_losses(
    stage: Stage,
    cascade: bool,
    samples: Samples,
    boxes: Float[Array, "batch slots 4"],
    logits: Float[Array, "batch slots _"],
    deltas: Float[Array, "batch slots classes 4"],
    labels: Int[Array, "batch slots"],
    truth: Truth,
    of_object: Int[Array, "batch slots"],
) -> Losses:
    """Of all samples the class, of those of objects the box: its offsets, in a cascade its overlap."""
    count = samples.valid.sum(axis=1).astype(jnp.float32)
    entropy = softmax_cross_entropy(logits, labels)
    predicted = of_class(deltas, labels, axis=2)
    targets = _rows(truth.boxes, of_object)
    if cascade:
        distance = GIOU_WEIGHT * giou_loss(decode_boxes(boxes, predicted, stage.stds), targets)
    else:
        distance = l1_loss(predicted, encode_boxes(boxes, targets, stage.stds)).sum(axis=-1)
    return {
        "loss_cls": Total(jnp.where(samples.valid, entropy, 0).sum(axis=1), count),
        "loss_bbox": Total(jnp.where(samples.positive, distance, 0).sum(axis=1), count),
    }


def _mask_loss(
    model: MaskRCNN,
    index: int,
    pyramid: Pyramid,
    samples: Samples,
    boxes: Float[Array, "batch slots 4"],
    labels: Int[Array, "batch slots"],
    truth: Truth,
    of_object: Int[Array, "batch slots"],
) -> Total:
    """Cross entropy of each pixel of the masks of the objects' classes."""
    first = int(boxes.shape[1] * POSITIVE_SHARE)  # the slots that samples of objects are in
    positive, boxes, labels, of_object = (array[:, :first] for array in (samples.positive, boxes, labels, of_object))
    logits = model.masks(pyramid.regions(boxes, MASK_SIDE), stage=index)
    logits = of_class(logits.reshape(*boxes.shape[:2], *logits.shape[1:]), labels, axis=4)
    targets = jax.vmap(lambda masks, which, boxes: mask_targets(masks, which, boxes, MASK_BINS))(
        truth.masks, of_object, boxes
    )
    losses = sigmoid_cross_entropy(logits, targets).sum(axis=(2, 3))
    return Total(jnp.where(positive, losses, 0).sum(axis=1), positive.sum(axis=1) * float(MASK_BINS**2))


def _rows(table: Array, index: Int[Array, "batch n"]) -> Array:
    """[batch objects ...] -> [batch n ...], rows of each picture's own."""
    return jax.vmap(lambda table, index: table[index])(table, index)


def of_class(x: Array, labels: Int[Array, "batch n"], axis: int) -> Array:
    """[batch n ...] without the axis of classes, of which each row has that of its label; padding has any."""
    known = jnp.minimum(labels, x.shape[axis] - 1).reshape(*labels.shape, *[1] * (x.ndim - 2))
    return jnp.take_along_axis(x, known, axis=axis).squeeze(axis)
