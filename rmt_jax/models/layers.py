"""Layers as PyTorch has them, so that the recipe and the published weights mean the same here.

Initialisation is upstream's: linear layers normal(0, 0.02) with zero bias, convolutions uniform within
+-1 / sqrt(fan_in), weights and biases alike.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Float, Key

from rmt_jax.models.initializers import KAIMING, normal, uniform_by_fan_in
from rmt_jax.ops import (
    Valid,
    clear,
    depthwise_conv2d,
    inside,
    linear,
    residual_layer_norm,
    strided,
)

Map = Float[Array, "batch height width channels"]

TRUNK = normal(0.02)

# What `jax.checkpoint` policies call the outputs of linear layers, and what the last one of a retention layer gets.
LINEAR = "linear"
RETAINED = "retained"


class Linear(nnx.Module):
    """Linear layer, by default with upstream's initialisation of the backbone and the classifier."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        kernel_init: nnx.Initializer = TRUNK,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.kernel = nnx.Param(kernel_init(rngs.params(), (in_features, out_features), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((out_features,)))
        self.dtype = dtype

    def __call__(self, x: Float[Array, "*axes inputs"]) -> Float[Array, "*axes outputs"]:
        """[..., in_features] -> [..., out_features]."""
        return self.project(x, jnp.asarray(self.kernel[...]), jnp.asarray(self.bias[...]))

    def project(
        self, x: Float[Array, "*axes inputs"], kernel: Float[Array, "inputs outputs"], bias: Float[Array, " outputs"]
    ) -> Float[Array, "*axes outputs"]:
        """The same with other weights."""
        y = linear(*(array.astype(self.dtype) for array in (x, kernel, bias)))
        return checkpoint_name(y, LINEAR)


def conv3x3(in_features: int, out_features: int, *, strides: int = 1, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.Conv:
    """3x3 convolution with bias and PyTorch's padding of 1, which differs from 'SAME' at stride 2."""
    init = uniform_by_fan_in(9 * in_features)
    return nnx.Conv(
        in_features,
        out_features,
        kernel_size=(3, 3),
        strides=strides,
        padding=1,
        kernel_init=init,
        bias_init=init,
        dtype=dtype,
        rngs=rngs,
    )


class LayerNorm(nnx.Module):
    """LayerNorm over the channels, with statistics in float32."""

    def __init__(self, features: int, *, epsilon: float = 1e-6, dtype: DTypeLike, rngs: nnx.Rngs):
        del rngs  # nothing random; taken so that all layers are made alike
        self.scale = nnx.Param(jnp.ones((features,)))
        self.bias = nnx.Param(jnp.zeros((features,)))
        self.epsilon, self.dtype = epsilon, dtype

    def __call__(self, x: Float[Array, "*axes channels"]) -> Float[Array, "*axes channels"]:
        """[..., features] -> the same shape."""
        return self.residual(x)[1]

    def residual(
        self, x: Float[Array, "*axes channels"]
    ) -> tuple[Float[Array, "*axes channels"], Float[Array, "*axes channels"]]:
        """(x, normalised x), for a branch that is added to x."""
        scale, bias = jnp.asarray(self.scale[...]), jnp.asarray(self.bias[...])
        return residual_layer_norm(x, scale, bias, self.epsilon, self.dtype)


class DepthwiseConv2d(nnx.Module):
    """Depthwise convolution with bias, stride 1, padding that keeps the size."""

    def __init__(self, features: int, kernel_size: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        init = uniform_by_fan_in(kernel_size**2)
        self.kernel = nnx.Param(init(rngs.params(), (kernel_size, kernel_size, 1, features)))
        self.bias = nnx.Param(init(rngs.params(), (features,)))
        self.dtype = dtype

    def __call__(self, x: Map, valid: Valid | None = None, *, residual: bool = False) -> Map:
        """[batch height width channels] -> the same shape; nothing outside of pictures of `valid` sizes is read.

        With `residual` x is added, but for what is outside.
        """
        kernel, bias = jnp.asarray(self.kernel[...]), jnp.asarray(self.bias[...])
        return depthwise_conv2d(clear(x, valid).astype(self.dtype), kernel, bias, residual=residual)


class BatchNorm(nnx.Module):
    """BatchNorm over all but the channels, as PyTorch keeps it: the running variance is the unbiased one.

    Statistics are float32 and, under `jax.jit` with a sharded batch, those of the global batch. `model.eval()` and
    `model.train()` switch `use_running_average`.
    """

    def __init__(
        self, features: int, *, epsilon: float = 1e-5, momentum: float = 0.1, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        del rngs  # nothing random; taken so that all layers are made alike
        self.scale = nnx.Param(jnp.ones((features,)))
        self.bias = nnx.Param(jnp.zeros((features,)))
        self.mean = nnx.BatchStat(jnp.zeros((features,)))
        self.var = nnx.BatchStat(jnp.ones((features,)))
        self.epsilon, self.momentum, self.dtype = epsilon, momentum, dtype
        self.use_running_average = False

    def set_view(self, *, use_running_average: bool | None = None) -> None:
        """What `nnx.view` may change."""
        if use_running_average is not None:
            self.use_running_average = use_running_average

    def __call__(self, x: Map, valid: Valid | None = None) -> Map:
        """[batch height width channels] -> the same shape; in training mode the running statistics move in place.

        Args:
            x: maps.
            valid: sizes of the pictures on them, of which the statistics are; None takes all positions.

        Raises:
            ValueError: in training mode with a single value for each channel, whose variance is undefined.
        """
        x = x.astype(jnp.float32)
        if self.use_running_average:
            mean, var = self.mean[...], self.var[...]
        else:
            if x.size == x.shape[-1]:
                raise ValueError(
                    f"BatchNorm in training mode got {x.shape}, one value for each channel, which has no variance. "
                    f"Use more or larger images, or model.eval()."
                )
            mean, var, count = _statistics(x, valid)
            unbiased = var * (count / (count - 1))
            self.mean[...] += self.momentum * (jax.lax.stop_gradient(mean) - self.mean[...])
            self.var[...] += self.momentum * (jax.lax.stop_gradient(unbiased) - self.var[...])
        y = (x - mean) * (jax.lax.rsqrt(var + self.epsilon) * self.scale[...]) + self.bias[...]
        return y.astype(self.dtype)


def _statistics(x: Map, valid: Valid | None) -> tuple[Array, Array, Array | int]:
    """(mean, biased variance, number of values) of each channel."""
    axes = (0, 1, 2)
    if valid is None:
        return x.mean(axis=axes), x.var(axis=axes), x.size // x.shape[-1]
    # At least two, so that a batch without a picture divides nothing by zero.
    count = jnp.maximum(inside(x, valid).sum(dtype=jnp.float32), 2)
    mean = clear(x, valid).sum(axis=axes) / count
    return mean, jnp.square(clear(x - mean, valid)).sum(axis=axes) / count, count


class ConvModule(nnx.Module):
    """Convolution, by default of stride 1, with padding that keeps the size: with BatchNorm and ReLU, or a bias alone.

    Weights are drawn by default as mmcv's module of this name draws them, from a normal of variance 2 / fan_out.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int,
        *,
        norm: bool,
        strides: int = 1,
        kernel_init: nnx.Initializer = KAIMING,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.conv = nnx.Conv(
            in_features,
            out_features,
            kernel_size=(kernel_size, kernel_size),
            strides=strides,
            padding=kernel_size // 2,
            use_bias=not norm,
            kernel_init=kernel_init,
            dtype=dtype,
            rngs=rngs,
        )
        self.bn = BatchNorm(out_features, dtype=dtype, rngs=rngs) if norm else None
        self.strides = strides

    def __call__(self, x: Map, valid: Valid | None = None) -> Float[Array, "batch _ _ _"]:
        """[batch height width in_features] -> [batch height/strides width/strides out_features], rounded up.

        Nothing outside of pictures of `valid` sizes, of x, is read.
        """
        x = self.conv(clear(x, valid))
        return x if self.bn is None else nnx.relu(self.bn(x, strided(valid, self.strides)))


def drop_path(
    keys: Key[Array, " blocks"], rates: Float[Array, " blocks"], batch: int
) -> Float[Array, "blocks branches=2 batch"]:
    """Stochastic depth: what each sample's branches are multiplied with, 0 or 1 / keep.

    Args:
        keys: of the blocks.
        rates: how likely each drops a branch, below 1.
        batch: samples.
    """

    def draw(key: Array, rate: Array) -> Float[Array, "branches=2 batch"]:
        kept = [jax.random.bernoulli(branch, 1 - rate, (batch,)) for branch in jax.random.split(key)]
        return jnp.where(jnp.stack(kept), 1 / (1 - rate), 0)

    return jax.vmap(draw)(keys, rates)


class Dropout2d(nnx.Module):
    """Drops whole channels of each sample and scales the kept ones by 1 / keep; the key comes with the call."""

    def __init__(self, rate: float):
        self.rate = rate

    def __call__(self, x: Map, key: Array | None) -> Map:
        """Without a key, or at rate 0, x itself."""
        if key is None or self.rate == 0:
            return x
        keep = 1 - self.rate
        mask = jax.random.bernoulli(key, keep, (x.shape[0], 1, 1, x.shape[3]))
        return jnp.where(mask, x.astype(jnp.float32) / keep, 0).astype(x.dtype)
