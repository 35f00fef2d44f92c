"""Heads of detectors: of every position of a pyramid (RetinaNet, RPN) and of regions cut out of it (boxes, masks).

Parameter paths keep the names of mmdet; outputs are float32, in the order of `ops` for anchors and boxes.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Bool, Float

from rmt_jax.models.fpn import FPN_FEATURES
from rmt_jax.models.initializers import KAIMING, XAVIER, normal
from rmt_jax.models.layers import ConvModule, Linear
from rmt_jax.models.rmt import Map, Output
from rmt_jax.ops import Valid, clear, strided

RETINA_ANCHORS, RPN_ANCHORS = 9, 3  # of each position
RETINA_PRIOR = 0.01  # probability of an object that a fresh RetinaNet gives everywhere
BOX_SIZE, MASK_SIZE = 7, 14  # sides of the regions that box and mask heads see
BOX_WIDENING = 4  # linear layers of a box head, over the channels of the pyramid
NUM_CONVS = 4

SMALL = normal(0.01)

Regions = Float[Array, "regions height width channels"]


class DenseOutputs(NamedTuple):
    """Of all anchors of each level of a pyramid: row by row, in a row column by column, there anchor by anchor.

    Attributes:
        logits: [batch anchors classes] of each level; an RPN's one class is the object.
        deltas: [batch anchors 4] of each level, (dx, dy, dw, dh) as encoded.
    """

    logits: tuple[Float[Array, "batch _ classes"], ...]
    deltas: tuple[Float[Array, "batch _ 4"], ...]


class RetinaHead(nnx.Module):
    """Classes and boxes of 9 anchors at every position, by four convolutions each (arXiv 1708.02002).

    Sigmoid, no class for the background. Source: mmdet `RetinaHead`.
    """

    def __init__(self, num_classes: int, *, features: int = FPN_FEATURES, dtype: DTypeLike, rngs: nnx.Rngs):
        def convs() -> list[ConvModule]:
            conv = functools.partial(ConvModule, features, features, 3, norm=False, kernel_init=_small_hidden(features))
            return [conv(dtype=dtype, rngs=rngs) for _ in range(NUM_CONVS)]

        self.features, self.dtype = features, dtype
        self.cls_convs, self.reg_convs = nnx.List(convs()), nnx.List(convs())
        self.retina_reg = _conv(features, RETINA_ANCHORS * 4, 3, dtype=dtype, rngs=rngs)
        self.reset_classifier(num_classes, rngs=rngs)

    def reset_classifier(self, num_classes: int, *, rngs: nnx.Rngs) -> None:
        """Replace the last layer of the classes by a fresh one."""
        bias = nnx.initializers.constant(-math.log((1 - RETINA_PRIOR) / RETINA_PRIOR))
        channels = RETINA_ANCHORS * num_classes
        self.retina_cls = _conv(self.features, channels, 3, bias_init=bias, dtype=self.dtype, rngs=rngs)

    def __call__(self, levels: Sequence[Output], valid: Valid | None = None) -> DenseOutputs:
        """Levels from fine to coarse, with pictures of `valid` sizes on the first -> outputs of all anchors."""
        sizes = [strided(valid, 2**level) for level in range(len(levels))]

        def branch(convs: Sequence[ConvModule], last: nnx.Conv, x: Map, size: Valid | None) -> Float[Array, "..."]:
            for conv in convs:
                x = nnx.relu(conv(x, size))
            return _by_anchor(last(clear(x, size)), RETINA_ANCHORS)

        of_levels = list(zip(levels, sizes, strict=True))
        return DenseOutputs(
            logits=tuple(branch(self.cls_convs, self.retina_cls, x, size) for x, size in of_levels),
            deltas=tuple(branch(self.reg_convs, self.retina_reg, x, size) for x, size in of_levels),
        )


class RPNHead(nnx.Module):
    """Whether there is an object, and its box, for 3 anchors at every position (arXiv 1506.01497).

    Source: mmdet `RPNHead`.
    """

    def __init__(self, *, features: int = FPN_FEATURES, dtype: DTypeLike, rngs: nnx.Rngs):
        init = _small_hidden(features)
        self.rpn_conv = _conv(features, features, 3, kernel_init=init, dtype=dtype, rngs=rngs)
        self.rpn_cls = _conv(features, RPN_ANCHORS, 1, dtype=dtype, rngs=rngs)
        self.rpn_reg = _conv(features, RPN_ANCHORS * 4, 1, dtype=dtype, rngs=rngs)

    def __call__(self, levels: Sequence[Output], valid: Valid | None = None) -> DenseOutputs:
        """Levels from fine to coarse, with pictures of `valid` sizes on the first -> outputs of all anchors."""
        logits, deltas = [], []
        for level, x in enumerate(levels):
            y = nnx.relu(self.rpn_conv(clear(x, strided(valid, 2**level))))
            logits.append(_by_anchor(self.rpn_cls(y), RPN_ANCHORS))
            deltas.append(_by_anchor(self.rpn_reg(y), RPN_ANCHORS))
        return DenseOutputs(tuple(logits), tuple(deltas))


class BoxHead(nnx.Module):
    """Class and box of a region: convolutions with BatchNorm, linear layers, and one more each.

    Mask R-CNN has two linear layers, Cascade Mask R-CNN four convolutions and one. Regions are flattened as they lie
    here, (height, width, channel); upstream's weights are in the order (channel, height, width). Source: mmdet
    `ConvFCBBoxHead`.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        num_convs: int,
        num_fcs: int,
        features: int = FPN_FEATURES,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.features, self.dtype = BOX_WIDENING * features, dtype
        convs = [ConvModule(features, features, 3, norm=True, dtype=dtype, rngs=rngs) for _ in range(num_convs)]
        widths = [features * BOX_SIZE**2] + [self.features] * num_fcs
        fcs = [
            Linear(before, after, kernel_init=XAVIER, dtype=dtype, rngs=rngs)
            for before, after in itertools.pairwise(widths)
        ]
        self.shared_convs, self.shared_fcs = nnx.List(convs), nnx.List(fcs)
        self.reset_classifier(num_classes, rngs=rngs)

    def reset_classifier(self, num_classes: int, *, rngs: nnx.Rngs) -> None:
        """Replace the last layers, boxes being predicted for each class, by fresh ones."""
        init = normal(0.001)
        self.fc_cls = Linear(self.features, num_classes + 1, kernel_init=SMALL, dtype=self.dtype, rngs=rngs)
        self.fc_reg = Linear(self.features, num_classes * 4, kernel_init=init, dtype=self.dtype, rngs=rngs)

    def __call__(
        self, regions: Regions, taken: Bool[Array, " regions"] | None = None
    ) -> tuple[Float[Array, "regions outputs"], Float[Array, "regions classes 4"]]:
        """[regions 7 7 features] -> (logits, the last one the background's; (dx, dy, dw, dh) for each class).

        Args:
            regions: features of the boxes.
            taken: which of them are boxes and no padding: statistics of BatchNorm are of these. None is all.
        """
        x = regions.astype(self.dtype)
        # A region that is padding is a picture of no size.
        valid = None if taken is None else jnp.where(taken[:, None], jnp.array([BOX_SIZE] * 2), 0)
        for conv in self.shared_convs:
            x = conv(x, valid)
        x = x.reshape(len(x), -1)
        for linear in self.shared_fcs:
            x = nnx.relu(linear(x))
        deltas = self.fc_reg(x).astype(jnp.float32)
        return self.fc_cls(x).astype(jnp.float32), deltas.reshape(len(x), -1, 4)


class Upsample(nnx.Module):
    """Twice the size by a transposed convolution of kernel 2 and stride 2: [2, 2] outputs of each position.

    Its kernel is [height width in out], and out[2 i + a, 2 j + b] comes from x[i, j] and kernel[a, b] alone.
    Source: `torch.nn.ConvTranspose2d`.
    """

    def __init__(self, in_features: int, out_features: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.kernel = nnx.Param(KAIMING(rngs.params(), (2, 2, in_features, out_features), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((out_features,)))
        self.dtype = dtype

    def __call__(self, x: Map) -> Output:
        """[batch height width in_features] -> [batch 2*height 2*width out_features]."""
        batch, height, width, _ = x.shape
        y = jnp.einsum("nhwi,abio->nhawbo", x.astype(self.dtype), self.kernel[...].astype(self.dtype))
        return y.reshape(batch, 2 * height, 2 * width, -1) + self.bias[...].astype(self.dtype)


class MaskHead(nnx.Module):
    """A mask of 28x28 of a region for each class (arXiv 1703.06870). Source: mmdet `FCNMaskHead`."""

    def __init__(self, num_classes: int, *, features: int = FPN_FEATURES, dtype: DTypeLike, rngs: nnx.Rngs):
        convs = [ConvModule(features, features, 3, norm=False, dtype=dtype, rngs=rngs) for _ in range(NUM_CONVS)]
        self.convs = nnx.List(convs)
        self.upsample = Upsample(features, features, dtype=dtype, rngs=rngs)
        self.features, self.dtype = features, dtype
        self.reset_classifier(num_classes, rngs=rngs)

    def reset_classifier(self, num_classes: int, *, rngs: nnx.Rngs) -> None:
        """Replace the last layer by a fresh one."""
        self.conv_logits = _conv(self.features, num_classes, 1, kernel_init=KAIMING, dtype=self.dtype, rngs=rngs)

    def __call__(self, regions: Regions) -> Float[Array, "regions _ _ classes"]:
        """[regions 14 14 features] -> logits [regions 28 28 classes]."""
        x = functools.reduce(lambda x, conv: nnx.relu(conv(x)), self.convs, regions.astype(self.dtype))
        return self.conv_logits(nnx.relu(self.upsample(x))).astype(jnp.float32)


def _conv(
    in_features: int,
    out_features: int,
    kernel_size: int,
    *,
    kernel_init: nnx.Initializer = SMALL,
    bias_init: nnx.Initializer = nnx.initializers.zeros,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """Convolution with bias that keeps the size."""
    return nnx.Conv(
        in_features,
        out_features,
        kernel_size=(kernel_size, kernel_size),
        padding=kernel_size // 2,
        kernel_init=kernel_init,
        bias_init=bias_init,
        dtype=dtype,
        rngs=rngs,
    )


def _small_hidden(features: int) -> nnx.Initializer:
    """Upstream's normal(0.01) for its 256 channels, and for fewer what makes outputs as large as with these."""
    return normal(0.01 * math.sqrt(FPN_FEATURES / features))


def _by_anchor(x: Map, anchors: int) -> Float[Array, "batch all outputs"]:
    """[batch height width anchors * outputs] -> [batch height * width * anchors outputs], in float32."""
    return x.astype(jnp.float32).reshape(len(x), -1, x.shape[-1] // anchors)
