"""Semantic segmentors: RMT's backbone with the heads of Semantic FPN and of UperNet, as upstream's mmseg models.

Parameter paths keep the names of mmseg: decode_head, auxiliary_head, conv_seg, scale_heads, psp_modules.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from rmt_jax.models.fpn import FPN
from rmt_jax.models.initializers import normal
from rmt_jax.models.layers import ConvModule, Dropout2d
from rmt_jax.models.rmt import Backbone, Images, Map, Output
from rmt_jax.models.variants import RMTConfig
from rmt_jax.ops import adaptive_mean_pool, resize_bilinear

SegmentationHead = Literal["semantic_fpn", "upernet"]
Logits = Float[Array, "batch _ _ classes"]

POOL_BINS = (1, 2, 3, 6)
AUX_MAP = 2  # the auxiliary head reads the third stage


class SegmentationOutput(nnx.Module):
    """The end of every head: channel-wise dropout, then a 1x1 convolution to the classes."""

    def __init__(self, features: int, num_classes: int, *, dropout: float, dtype: DTypeLike, rngs: nnx.Rngs):
        self.features, self.dtype = features, dtype
        self.dropout = Dropout2d(dropout)
        self.reset_classifier(num_classes, rngs=rngs)

    def reset_classifier(self, num_classes: int, *, rngs: nnx.Rngs) -> None:
        """Replace the last convolution by a fresh one: normal(0, 0.01), zero bias."""
        init = normal(0.01)
        self.conv_seg = nnx.Conv(
            self.features, num_classes, kernel_size=(1, 1), kernel_init=init, dtype=self.dtype, rngs=rngs
        )

    def classify(self, x: Map, key: Array | None) -> Logits:
        """[batch height width features] -> float32 logits; the key draws the dropout, None is none."""
        return self.conv_seg(self.dropout(x, key)).astype(jnp.float32)


class SemanticFPNHead(SegmentationOutput):
    """Every level up to the finest one's size by 3x3 convolutions and doublings, then summed (arXiv 1901.02446).

    Level i has max(1, i) convolutions, each but level 0's followed by a bilinear doubling. Source: mmseg `FPNHead`.
    """

    def __init__(
        self,
        in_features: Sequence[int],
        num_classes: int,
        *,
        features: int,
        dropout: float = 0.1,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        super().__init__(features, num_classes, dropout=dropout, dtype=dtype, rngs=rngs)
        levels = []
        for level, width in enumerate(in_features):
            layers: list[ConvModule | None] = []  # None stands for doubling, so that the positions are upstream's
            for step in range(max(1, level)):
                layers.append(ConvModule(features if step else width, features, 3, norm=True, dtype=dtype, rngs=rngs))
                layers.append(None)
            levels.append(nnx.List(layers if level else layers[:1]))
        self.scale_heads = nnx.List(levels)

    def __call__(self, maps: Sequence[Output], key: Array | None = None) -> Logits:
        """Maps from fine to coarse -> logits of the finest one's size."""
        levels = []
        for layers, x in zip(self.scale_heads, maps, strict=True):
            for layer in layers:
                x = resize_bilinear(x, (2 * x.shape[1], 2 * x.shape[2])) if layer is None else layer(x)
            levels.append(resize_bilinear(x, maps[0].shape[1:3]))
        return self.classify(functools.reduce(jnp.add, levels), key)


class UPerHead(SegmentationOutput):
    """UperNet (arXiv 1807.10221): pyramid pooling on the coarsest map, a feature pyramid, all levels fused."""

    def __init__(
        self,
        in_features: Sequence[int],
        num_classes: int,
        *,
        features: int,
        dropout: float = 0.1,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        super().__init__(features, num_classes, dropout=dropout, dtype=dtype, rngs=rngs)

        def conv(width: int, kernel_size: int) -> ConvModule:
            return ConvModule(width, features, kernel_size, norm=True, dtype=dtype, rngs=rngs)

        *finer, top = in_features
        # None stands for the pooling, so that the positions are upstream's.
        self.psp_modules: Any = nnx.List([nnx.List([None, conv(top, 1)]) for _ in POOL_BINS])
        self.bottleneck = conv(top + len(POOL_BINS) * features, 3)
        self.lateral_convs = nnx.List([conv(width, 1) for width in finer])
        self.fpn_convs = nnx.List([conv(features, 3) for _ in finer])
        self.fpn_bottleneck = conv(len(in_features) * features, 3)

    def __call__(self, maps: Sequence[Output], key: Array | None = None) -> Logits:
        """Maps from fine to coarse -> logits of the finest one's size."""
        levels = [lateral(x) for lateral, x in zip(self.lateral_convs, maps[:-1], strict=True)]
        levels.append(self._pyramid_pooling(maps[-1]))
        for finer in reversed(range(len(levels) - 1)):
            levels[finer] += resize_bilinear(levels[finer + 1], levels[finer].shape[1:3])
        fused = [conv(x) for conv, x in zip(self.fpn_convs, levels[:-1], strict=True)] + levels[-1:]
        x = jnp.concatenate([resize_bilinear(x, maps[0].shape[1:3]) for x in fused], axis=-1)
        return self.classify(self.fpn_bottleneck(x), key)

    def _pyramid_pooling(self, x: Map) -> Output:
        """The map beside its means over 1, 2x2, 3x3 and 6x6 parts, fused (arXiv 1612.01105)."""
        pooled = [
            resize_bilinear(layers[1](adaptive_mean_pool(x, bins)), x.shape[1:3])
            for bins, layers in zip(POOL_BINS, self.psp_modules, strict=True)
        ]
        return self.bottleneck(jnp.concatenate([x, *pooled], axis=-1))


class FCNHead(SegmentationOutput):
    """One 3x3 convolution of one map: the auxiliary head, of use in training only."""

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        features: int,
        dropout: float = 0.1,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        super().__init__(features, num_classes, dropout=dropout, dtype=dtype, rngs=rngs)
        self.convs = nnx.List([ConvModule(in_features, features, 3, norm=True, dtype=dtype, rngs=rngs)])

    def __call__(self, x: Map, key: Array | None = None) -> Logits:
        """[batch height width in_features] -> logits of the same size."""
        for conv in self.convs:
            x = conv(x)
        return self.classify(x, key)


class Segmentor(nnx.Module):
    """RMT for semantic segmentation: backbone with norms of its maps, a neck where the head has one, and the head.

    A UperNet has an auxiliary head on the third stage besides.
    """

    def __init__(
        self,
        config: RMTConfig,
        head: SegmentationHead,
        *,
        dropout: float = 0.1,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_segmentor(config, head, dropout)
        self.backbone = Backbone(dataclasses.replace(config, extra_norms=True), dtype=dtype, rngs=rngs)
        dims, width, classes = config.embed_dims, config.pyramid_features, config.num_classes
        options: dict[str, Any] = {"dropout": dropout, "dtype": dtype, "rngs": rngs}
        self.neck: FPN | None
        self.decode_head: SemanticFPNHead | UPerHead
        self.auxiliary_head: FCNHead | None
        if head == "semantic_fpn":
            self.neck = FPN(dims, width, dtype=dtype, rngs=rngs)
            self.decode_head = SemanticFPNHead([width] * len(dims), classes, features=width // 2, **options)
            self.auxiliary_head = None
        else:
            self.neck = None
            self.decode_head = UPerHead(dims, classes, features=2 * width, **options)
            self.auxiliary_head = FCNHead(dims[AUX_MAP], classes, features=width, **options)
        self.head_name: SegmentationHead = head
        self.deterministic = False  # model.eval() sets it: inference output, no dropout

    @property
    def config(self) -> RMTConfig:
        """The architecture, the head aside."""
        return self.backbone.config

    def reset_classifier(self, num_classes: int, *, rngs: nnx.Rngs) -> None:
        """Replace the last convolution of the head, and of the auxiliary head, by fresh ones for `num_classes`."""
        self.backbone.config = dataclasses.replace(self.backbone.config, num_classes=num_classes)
        self.decode_head.reset_classifier(num_classes, rngs=rngs)
        if self.auxiliary_head is not None:
            self.auxiliary_head.reset_classifier(num_classes, rngs=rngs)

    def freeze_backbone(self) -> None:
        """Put the backbone in evaluation mode: fixed statistics, no drop path. Neck and heads still learn."""
        self.backbone.eval()

    def __call__(self, images: Images, *, rngs: nnx.Rngs | None = None) -> Logits | tuple[Logits, Logits]:
        """Logits at a quarter of the size; of a UperNet in training mode (logits, the auxiliary head's logits).

        Args:
            images: [batch height width 3] normalised floats, 32x32 pixels or more, square or not.
            rngs: draws drop path and dropout in training mode.

        Returns:
            [batch height/4 width/4 classes], sizes rounded up, in float32; the auxiliary head's are
            [batch height/16 width/16 classes].

        Raises:
            ValueError: images of another shape or type; no rngs where drop path or dropout needs them.
        """
        maps = self.backbone(images, rngs=rngs)
        keys = self._dropout_keys(rngs)
        logits = self.decode_head(maps if self.neck is None else self.neck(maps), keys[0])
        if self.auxiliary_head is None or self.deterministic:
            return logits
        return logits, self.auxiliary_head(maps[AUX_MAP], keys[1])

    def _dropout_keys(self, rngs: nnx.Rngs | None) -> Array | tuple[None, None]:
        """One for each head."""
        rate = self.decode_head.dropout.rate
        if self.deterministic or rate == 0:
            return None, None
        if rngs is None:
            raise ValueError(
                f"In training mode dropout ({rate}) needs randomness: pass rngs=nnx.Rngs(seed), or switch to "
                f"model.eval(), or create the model with dropout=0."
            )
        return jax.random.split(rngs.dropout())

    def set_view(self, *, deterministic: bool | None = None) -> None:
        """What `nnx.view` may change."""
        if deterministic is not None:
            self.deterministic = deterministic


def check_segmentor(config: RMTConfig, head: str | None, dropout: float = 0.0) -> None:
    """Raise ValueError for what makes no segmentor."""
    heads = get_args(SegmentationHead)
    if head not in heads:
        raise ValueError(f"A segmentor needs a head, one of {', '.join(heads)}; got {head!r}.")
    if config.aux_head:
        raise ValueError(
            "Starred models differ from the plain ones in a classification head that a segmentor does not have: use "
            "the name without _star. Weights of a starred classifier go into it."
        )
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is a probability in [0, 1), got {dropout}.")
    if head == "semantic_fpn" and config.pyramid_features % 2:
        raise ValueError(f"Semantic FPN halves pyramid_features, which must be even, got {config.pyramid_features}.")
