"""Detectors: RMT's backbone with a feature pyramid and the heads of RetinaNet, Mask R-CNN or Cascade Mask R-CNN.

Parameter paths keep the names of mmdet: neck, bbox_head, rpn_head, roi_head. Modules hold parameters and go as far as
the raw outputs of each head; anchors, proposals, regions, losses and detections are made in `ops` and `tasks`.
"""

import dataclasses
from typing import Any, ClassVar, Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Bool, Float

from rmt_jax.models.detection_heads import (
    BoxHead,
    DenseOutputs,
    MaskHead,
    Regions,
    RetinaHead,
    RPNHead,
)
from rmt_jax.models.fpn import FPN, ExtraLevels
from rmt_jax.models.initializers import XAVIER
from rmt_jax.models.rmt import Backbone, Images, Output
from rmt_jax.models.variants import RMTConfig
from rmt_jax.ops import Valid, strided

DetectionHead = Literal["retinanet", "mask_rcnn", "cascade_mask_rcnn"]
Levels = tuple[Output, ...]


class Detector(nnx.Module):
    """What all detectors begin with: the backbone, with norms of its maps, and the pyramid.

    Attributes:
        HEAD: name of the head.
        FIRST_MAP: index of the finest of the backbone's maps that the pyramid takes.
        EXTRA_LEVELS: of the pyramid.
    """

    HEAD: ClassVar[DetectionHead]
    FIRST_MAP: ClassVar[int]
    EXTRA_LEVELS: ClassVar[ExtraLevels]

    def __init__(self, config: RMTConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        check_detector(config, self.HEAD)
        self.backbone = Backbone(dataclasses.replace(config, extra_norms=True), dtype=dtype, rngs=rngs)
        dims = config.embed_dims[self.FIRST_MAP :]
        self.neck = FPN(
            dims,
            config.pyramid_features,
            extra_levels=self.EXTRA_LEVELS,
            kernel_init=XAVIER,
            dtype=dtype,
            rngs=rngs,
        )

    @property
    def config(self) -> RMTConfig:
        """The architecture, the head aside."""
        return self.backbone.config

    @property
    def strides(self) -> tuple[int, ...]:
        """Of the five levels of the pyramid, in pixels."""
        return tuple(4 * 2 ** (self.FIRST_MAP + level) for level in range(5))

    def freeze_backbone(self) -> None:
        """Put the backbone in evaluation mode: fixed statistics, no drop path. Neck and heads still learn."""
        self.backbone.eval()

    def features(self, images: Images, *, rngs: nnx.Rngs | None = None, valid: Valid | None = None) -> Levels:
        """The five levels of the pyramid, [batch height/stride width/stride channels], sizes rounded up.

        Args:
            images: [batch height width 3] normalised floats, 32x32 pixels or more.
            rngs: draws the drop path in training mode.
            valid: (height, width) in pixels of pictures in the top left corner of a larger canvas, whose levels are
                then those of each picture alone, see `Backbone`. Upstream pads pictures with zeros to multiples of 32,
                which count as part of them: for its numbers give the padded sizes. None: they fill the canvas.

        Raises:
            ValueError: images of another shape or type; no rngs where drop path needs them; other sizes.
        """
        maps = self.backbone(images, rngs=rngs, valid=valid)[self.FIRST_MAP :]
        with jax.named_scope("neck"):
            return self.neck(maps, strided(valid, self.strides[0]))

    def dense(self, levels: Levels, *, valid: Valid | None = None) -> DenseOutputs:
        """Outputs for all anchors of all levels; `valid` as for `features`, in pixels."""
        with jax.named_scope("dense_head"):
            return self._dense_head(levels, strided(valid, self.strides[0]))

    def __call__(self, images: Images, *, rngs: nnx.Rngs | None = None, valid: Valid | None = None) -> DenseOutputs:
        """`dense` of `features`: what a RetinaNet predicts, what an R-CNN takes its proposals from."""
        return self.dense(self.features(images, rngs=rngs, valid=valid), valid=valid)

    def _dense_head(self, levels: Levels, valid: Valid | None) -> DenseOutputs:
        raise NotImplementedError


class RetinaNet(Detector):
    """One stage, levels of strides 8 to 128 (arXiv 1708.02002)."""

    HEAD, FIRST_MAP, EXTRA_LEVELS = "retinanet", 1, "convolved"

    def __init__(self, config: RMTConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        super().__init__(config, dtype=dtype, rngs=rngs)
        self.bbox_head = RetinaHead(config.num_classes, features=config.pyramid_features, dtype=dtype, rngs=rngs)

    def reset_classifier(self, num_classes: int, *, rngs: nnx.Rngs) -> None:
        """Replace the last layer of the classes by a fresh one for `num_classes`."""
        self.backbone.config = dataclasses.replace(self.backbone.config, num_classes=num_classes)
        self.bbox_head.reset_classifier(num_classes, rngs=rngs)

    def _dense_head(self, levels: Levels, valid: Valid | None) -> DenseOutputs:
        return self.bbox_head(levels, valid)


class RoIHead(nnx.Module):
    """The second stage of an R-CNN: a head for boxes and one for masks, or a list of each."""

    def __init__(self, bbox_heads: list[BoxHead], mask_heads: list[MaskHead]):
        cascade = len(bbox_heads) > 1
        self.bbox_head: Any = nnx.List(bbox_heads) if cascade else bbox_heads[0]
        self.mask_head: Any = nnx.List(mask_heads) if cascade else mask_heads[0]


class MaskRCNN(Detector):
    """Two stages, levels of strides 4 to 64, the coarsest one for proposals alone (arXiv 1703.06870)."""

    HEAD: ClassVar[DetectionHead] = "mask_rcnn"
    FIRST_MAP, EXTRA_LEVELS = 0, "subsampled"
    STAGES: ClassVar[int] = 1  # of regions
    BOX_CONVS: ClassVar[int] = 0
    BOX_FCS: ClassVar[int] = 2

    def __init__(self, config: RMTConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        super().__init__(config, dtype=dtype, rngs=rngs)
        options: dict[str, Any] = {"features": config.pyramid_features, "dtype": dtype, "rngs": rngs}
        self.rpn_head = RPNHead(**options)
        self.roi_head = RoIHead(
            [
                BoxHead(config.num_classes, num_convs=self.BOX_CONVS, num_fcs=self.BOX_FCS, **options)
                for _ in range(self.STAGES)
            ],
            [MaskHead(config.num_classes, **options) for _ in range(self.STAGES)],
        )

    def reset_classifier(self, num_classes: int, *, rngs: nnx.Rngs) -> None:
        """Replace the last layers of boxes and masks, of every stage, by fresh ones for `num_classes`."""
        self.backbone.config = dataclasses.replace(self.backbone.config, num_classes=num_classes)
        for stage in range(self.STAGES):
            for head in (self.roi_head.bbox_head, self.roi_head.mask_head):
                _of_stage(head, stage).reset_classifier(num_classes, rngs=rngs)

    def boxes(
        self, regions: Regions, *, stage: int = 0, taken: Bool[Array, " regions"] | None = None
    ) -> tuple[Float[Array, "regions outputs"], Float[Array, "regions classes 4"]]:
        """(Logits of the classes and, last, the background; encoded boxes for each class) of regions.

        Args:
            regions: [regions 7 7 channels], of all pictures in one row.
            stage: of a cascade.
            taken: which regions are no padding, for statistics of BatchNorm, which only cascades have; None is all.
        """
        with jax.named_scope(f"box_head{stage}"):
            return _of_stage(self.roi_head.bbox_head, stage)(regions, taken)

    def masks(self, regions: Regions, *, stage: int = 0) -> Float[Array, "regions _ _ classes"]:
        """Logits [regions 28 28 classes] of regions [regions 14 14 channels]."""
        with jax.named_scope(f"mask_head{stage}"):
            return _of_stage(self.roi_head.mask_head, stage)(regions)

    def _dense_head(self, levels: Levels, valid: Valid | None) -> DenseOutputs:
        return self.rpn_head(levels, valid)


class CascadeMaskRCNN(MaskRCNN):
    """Mask R-CNN with three stages of regions, each with heads of its own (arXiv 1712.00726)."""

    HEAD = "cascade_mask_rcnn"
    STAGES = 3
    BOX_CONVS, BOX_FCS = 4, 1


DETECTORS: dict[str, type[RetinaNet | MaskRCNN]] = {
    detector.HEAD: detector for detector in (RetinaNet, MaskRCNN, CascadeMaskRCNN)
}


def check_detector(config: RMTConfig, head: str | None) -> None:
    """Raise ValueError for what makes no detector."""
    heads = get_args(DetectionHead)
    if head not in heads:
        raise ValueError(f"A detector needs a head, one of {', '.join(heads)}; got {head!r}.")
    if config.aux_head:
        raise ValueError(
            "Starred models differ from the plain ones in a classification head that a detector does not have: use the "
            "name without _star. Weights of a starred classifier go into it."
        )


def _of_stage(head: Any, stage: int) -> Any:
    """The head of a stage, where there is a list of them."""
    return head[stage] if isinstance(head, nnx.List) else head
