"""The feed-forward branch of a block as one function with one backward pass, which keeps the map alone.

For TPUs, see `pallas_ffn`; elsewhere the layers of the model compute it one after the other.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from rmt_jax.ops.pallas_ffn import fused_ffn_backward, fused_ffn_forward, pack
from rmt_jax.ops.pallas_ffn_kernels import Weights

Map = Float[Array, "batch height width channels"]
Factor = Float[Array, " batch"]
Channels = Float[Array, " channels"]
Hidden = Float[Array, " hidden"]


class FFNWeights(NamedTuple):
    """All weights of a branch, float32 or bfloat16.

    Attributes:
        norm_scale: of the LayerNorm before it.
        norm_bias: the same.
        fc1_kernel: of the first linear layer.
        fc1_bias: the same.
        dw_kernel: of the depthwise convolution of the hidden layer.
        dw_bias: the same.
        fc2_kernel: of the second linear layer.
        fc2_bias: the same.
        gamma: layer scale, None for none.
    """

    norm_scale: Channels
    norm_bias: Channels
    fc1_kernel: Float[Array, "channels hidden"]
    fc1_bias: Hidden
    dw_kernel: Float[Array, "3 3 1 hidden"]
    dw_bias: Hidden
    fc2_kernel: Float[Array, "hidden channels"]
    fc2_bias: Channels
    gamma: Channels | None


def fused_ffn(x: Map, factor: Factor, weights: FFNWeights, epsilon: float) -> Map:
    """x + factor * gamma * fc2(h + dwconv(h)), h = gelu(fc1(LayerNorm(x))), by kernels for TPUs.

    Args:
        x: float32 or bfloat16, of a size that `ffn_fits` accepts.
        factor: of each picture: 1, or what drop path multiplies its branch with. Has no gradient.
        weights: of the branch.
        epsilon: of the LayerNorm.
    """
    # Gathered weights come in the type that they travelled in.
    weights = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), weights)
    # The LayerNorm's own weights go into the first layer and the layer scale into the second, before the kernels.
    first = weights.norm_scale[:, None] * weights.fc1_kernel
    bias = weights.fc1_bias + jnp.dot(weights.norm_bias, weights.fc1_kernel, precision=jax.lax.Precision.HIGHEST)
    gamma = 1.0 if weights.gamma is None else weights.gamma
    second = weights.fc2_kernel * gamma, weights.fc2_bias * gamma
    return _ffn(epsilon, x, factor, pack(first, bias, weights.dw_kernel, weights.dw_bias, *second))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _ffn(epsilon: float, x: Map, factor: Factor, weights: Weights) -> Map:
    return _result(epsilon, x, factor, weights)


def _forward(epsilon: float, x: Map, factor: Factor, weights: Weights) -> tuple[Map, tuple[Map, Factor, Weights]]:
    return _ffn(epsilon, x, factor, weights), (x, factor, weights)


def _backward(epsilon: float, saved: tuple[Map, Factor, Weights], dy: Map) -> tuple[Map, Factor, Weights]:
    x, factor, weights = saved
    dx, dweights = _gradients(epsilon, x, factor, weights, dy)
    return dx, jnp.zeros_like(factor), dweights


_ffn.defvjp(_forward, _backward)


# Compiled with what calls them; jitted so that the blocks of a stage trace the kernels once.
@functools.partial(jax.jit, static_argnums=0)
def _result(epsilon: float, x: Map, factor: Factor, weights: Weights) -> Map:
    return fused_ffn_forward(x, factor, weights, epsilon)


@functools.partial(jax.jit, static_argnums=0)
def _gradients(epsilon: float, x: Map, factor: Factor, weights: Weights, dy: Map) -> tuple[Map, Weights]:
    return fused_ffn_backward(x, factor, weights, dy, epsilon)
