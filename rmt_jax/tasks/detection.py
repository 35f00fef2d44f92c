"""Object detection: boxes with classes, and masks; RetinaNet, Mask R-CNN and Cascade Mask R-CNN."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float, Int

from rmt_jax.models import DenseOutputs, DetectionHead, MaskRCNN, RetinaNet, RMTConfig, build_model
from rmt_jax.ops import RETINANET_SCALES, RPN_SCALES, Valid, at_random, clear
from rmt_jax.ops.sampling import Choice
from rmt_jax.tasks.classification import normalize
from rmt_jax.tasks.detection_dense import (
    AnchorGrid,
    Losses,
    Total,
    Truth,
    proposals_of,
    retinanet_losses,
    rpn_losses,
)
from rmt_jax.tasks.detection_predictions import rcnn_found, retinanet_found
from rmt_jax.tasks.detection_regions import REGION_LEVELS, Boxes, Pyramid, region_losses

Batch = Mapping[str, Array]

# Upstream's boxes of each level that enter NMS, and how many remain of all; those of training come first.
BEFORE_NMS = (2000, 1000)
PROPOSALS = {"mask_rcnn": (1000, 1000), "cascade_mask_rcnn": (2000, 1000)}
# Of how many pictures the boxes are counted together, by which a loss is divided: 0 stands for the whole batch.
GROUPS = {"pair": 2, "picture": 1, "batch": 0}


@dataclasses.dataclass(frozen=True)
class DetectionConfig:
    """Head, losses and prediction; the defaults are upstream's.

    Attributes:
        head: "retinanet", "mask_rcnn" or "cascade_mask_rcnn".
        normalizer: what losses are divided by: the boxes of a "pair" of pictures, as upstream with its two a GPU, the
            mean over all pairs being taken; of each "picture"; or of the whole "batch".
        canvas: "masked" gives every picture the features it has without the canvas around it, as exact as upstream;
            "plain" takes the canvas as part of the picture, which is quicker, and other features.
        sampling_ratio: samples in a bin of RoIAlign along each axis; 0 for as many as the bin is long, as upstream.
        proposals: of a picture, from which the second stage of an R-CNN begins; None for upstream's 1000, in the
            training of a cascade 2000. A number holds for evaluation too, and NMS gets as many of each level, in
            training twice as many. Small pictures need far fewer.
        samples: of those, how many the second stage learns from; up to a quarter of them are of objects.
        overlays: pictures of which an evaluation saves what was found.
    """

    head: DetectionHead = "mask_rcnn"
    normalizer: Literal["pair", "picture", "batch"] = "pair"
    canvas: Literal["masked", "plain"] = "masked"
    sampling_ratio: int = 0
    proposals: int | None = None
    samples: int = 512
    overlays: int = 8

    def __post_init__(self) -> None:
        for name, least in (("sampling_ratio", 0), ("proposals", 1), ("samples", 4), ("overlays", 0)):
            if (value := getattr(self, name)) is not None and value < least:
                raise ValueError(f"detection.{name}={value}: expected {least} or more.")

    @property
    def has_masks(self) -> bool:
        """Whether the head predicts masks."""
        return self.head != "retinanet"

    def proposal_counts(self, *, training: bool) -> tuple[int, int]:
        """(boxes of each level that enter NMS, proposals of all levels that remain at most)."""
        if self.proposals is not None:
            return (2 if training else 1) * self.proposals, self.proposals
        which = 0 if training else 1
        return BEFORE_NMS[which], PROPOSALS[self.head][which]


@dataclasses.dataclass(frozen=True)
class Detection:
    """The task. Training batches are those of `DetectionTrainLoader`, for predictions see `predict`.

    Attributes:
        model: architecture; its number of classes is the data set's.
        dtype: type to compute in.
        mean: of each colour, in [0, 1], subtracted on the device.
        std: of each colour, divided by.
        config: head, losses and prediction.
        fills_canvas: pictures to predict for have canvases of their own, of their padded size.
        choice: which boxes are sampled; by chance in training, otherwise for comparisons.
    """

    model: RMTConfig
    dtype: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    config: DetectionConfig = dataclasses.field(default_factory=DetectionConfig)
    fills_canvas: bool = True
    choice: Choice = at_random

    @property
    def inseparable(self) -> int:
        """Pictures whose boxes are counted together."""
        return max(GROUPS[self.config.normalizer], 1)

    def init_model(self, rngs: nnx.Rngs) -> RetinaNet | MaskRCNN:
        """A detector with fresh weights, in training mode."""
        model: Any = build_model(self.model, "detection", self.config.head, dtype=jnp.dtype(self.dtype), rngs=rngs)
        return model

    def prepare(self, batch: Batch, key: Array, frozen: Any = None) -> dict[str, Array]:
        """The batch with normalised floats for pictures, 0 beyond them as upstream pads."""
        del key, frozen  # all random changes are made where the pictures are loaded
        return {**batch, "image": self._normalized(batch)}

    def loss(self, model: Any, batch: Batch, rngs: nnx.Rngs) -> tuple[Array, dict[str, Array]]:
        """The sum of the head's losses, and each of them."""
        truth = Truth(*(batch[name] for name in ("boxes", "labels", "valid", "image_size", "pad_size")))
        if self.config.has_masks:
            truth = truth._replace(masks=batch["masks"])
        extent = self._extent(batch, self._group(len(batch["image"])))
        levels = model.features(batch["image"], rngs=rngs, valid=self._valid(extent))
        dense = model.dense(levels, valid=self._valid(extent))
        grid = self._grid(model, batch)
        with jax.named_scope("losses"):
            if isinstance(model, MaskRCNN):
                keys = jax.random.split(rngs.sampling(), (2, len(batch["image"])))
                totals = self._rcnn_losses(model, levels, dense, grid, truth, extent, keys)
            else:
                totals = retinanet_losses(dense, grid, truth)
            losses = {name: self.normalized(total) for name, total in totals.items()}
        loss = sum(losses.values(), start=jnp.zeros(()))
        return loss, {"loss": loss, **losses}

    def predict(self, model: Any, batch: Batch) -> dict[str, Array]:
        """What is found in each picture, in its original coordinates, by decreasing score.

        {"boxes": [batch slots 4], "scores": [batch slots], "labels": [batch slots], "valid": [batch slots]} and, of an
        R-CNN, {"masks": [batch slots 28 28]}, probabilities in the boxes: see `paste_mask`.

        Args:
            model: in evaluation mode.
            batch: "image", "image_size", "pad_size" and "scale_factor" of `DetectionEvalLoader`.
        """
        size, scale = batch["image_size"], batch["scale_factor"][:, 1::-1]
        extent = self._extent(batch, 1)
        valid = None if self.fills_canvas else self._valid(extent)
        levels = model.features(self._normalized(batch), valid=valid)
        dense, grid = model.dense(levels, valid=valid), self._grid(model, batch)
        if not isinstance(model, MaskRCNN):
            return retinanet_found(dense, grid, size, extent, scale)._asdict()
        before_nms, most = self.config.proposal_counts(training=False)
        proposals = proposals_of(dense, grid, size, extent, before_nms=before_nms, most=most)
        found, masks = rcnn_found(model, self._pyramid(model, levels, valid), proposals, size, scale)
        return {**found._asdict(), "masks": masks}

    def device_batch(self, local: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Of a batch of `DetectionEvalLoader` what `predict` takes."""
        return {name: local[name] for name in ("image", "image_size", "pad_size", "scale_factor")}

    def normalized(self, total: Total) -> Float[Array, ""]:
        """The mean over all groups of a loss divided by what its boxes are counted as, at least 1."""
        group = self._group(len(total.total))
        totals, divisors = (x.reshape(-1, group).sum(axis=1) for x in total)
        return (totals / jnp.maximum(divisors, 1)).mean()

    def _rcnn_losses(
        self,
        model: MaskRCNN,
        levels: Any,
        dense: DenseOutputs,
        grid: AnchorGrid,
        truth: Truth,
        extent: Int[Array, "batch 2"],
        keys: Array,
    ) -> Losses:
        cascade = model.STAGES > 1
        totals = rpn_losses(dense, grid, truth, keys[0], cascade=cascade, choice=self.choice)
        before_nms, most = self.config.proposal_counts(training=True)
        found = proposals_of(dense, grid, truth.image_size, extent, before_nms=before_nms, most=most)
        pyramid = self._pyramid(model, levels, self._valid(extent))
        proposals = Boxes(found.boxes, found.valid)
        slots = self.config.samples
        return totals | region_losses(model, pyramid, proposals, truth, keys[1], slots=slots, choice=self.choice)

    def _group(self, pictures: int) -> int:
        """Pictures that are counted together; a single one is a pair of its own."""
        return min(GROUPS[self.config.normalizer] or pictures, pictures)

    def _extent(self, batch: Batch, group: int) -> Int[Array, "batch 2"]:
        """(height, width) of what counts as each picture: upstream pads those of a GPU to the largest of them."""
        if self.config.canvas == "plain":
            return jnp.broadcast_to(jnp.array(batch["image"].shape[1:3]), batch["pad_size"].shape)
        if self.config.normalizer != "pair" or group == 1:
            return batch["pad_size"]
        largest = batch["pad_size"].reshape(-1, group, 2).max(axis=1)
        return jnp.repeat(largest, group, axis=0)

    def _valid(self, extent: Int[Array, "batch 2"]) -> Valid | None:
        """What the model has to keep to."""
        return extent if self.config.canvas == "masked" else None

    def _grid(self, model: RetinaNet | MaskRCNN, batch: Batch) -> AnchorGrid:
        height, width = batch["image"].shape[1:3]
        scales = RPN_SCALES if isinstance(model, MaskRCNN) else RETINANET_SCALES
        return AnchorGrid((height, width), model.strides, scales)

    def _pyramid(self, model: MaskRCNN, levels: Any, valid: Valid | None) -> Pyramid:
        return Pyramid(levels[:REGION_LEVELS], model.strides[:REGION_LEVELS], valid, self.config.sampling_ratio)

    def _normalized(self, batch: Batch) -> Float[Array, "batch height width 3"]:
        return clear(normalize(batch["image"], self.mean, self.std), batch["image_size"])
