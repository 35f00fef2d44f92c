"""LayerNorm with its own backward pass, for the sake of CPUs; on GPUs that is a kernel."""

import functools

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from rmt_jax.ops.formulations import chosen_here
from rmt_jax.ops.linear import computed_once, sum_rows
from rmt_jax.ops.triton_layer_norm import triton_layer_norm_gradients

Inputs = Float[Array, "*axes channels"]
Channels = Float[Array, " channels"]


def layer_norm(x: Inputs, scale: Channels, bias: Channels, epsilon: float, dtype: DTypeLike = jnp.float32) -> Inputs:
    """(x - mean) / sqrt(var + epsilon) * scale + bias over the channels, computed in float32, as `dtype`.

    In two passes: E[x^2] - E[x]^2 fails for large means. The gradients are the usual ones; as in `linear`, what comes
    back is computed once on a CPU, and summed in parts.
    """
    return residual_layer_norm(x, scale, bias, epsilon, dtype)[1]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def residual_layer_norm(
    x: Inputs, scale: Channels, bias: Channels, epsilon: float, dtype: DTypeLike = jnp.float32
) -> tuple[Inputs, Inputs]:
    """(x, `layer_norm` of it), for a branch that is added to x: both gradients are added in the pass of the second."""
    normal, _ = _normalise(x, epsilon)
    return x, (normal * scale + bias).astype(dtype)


def _forward(
    x: Inputs, scale: Channels, bias: Channels, epsilon: float, dtype: DTypeLike
) -> tuple[tuple[Inputs, Inputs], tuple[Inputs, Channels]]:
    return residual_layer_norm(x, scale, bias, epsilon, dtype), (x, scale)


def _backward(
    epsilon: float, dtype: DTypeLike, saved: tuple[Inputs, Channels], gradients: tuple[Inputs, Inputs]
) -> tuple[Inputs, Channels, Channels]:
    # When it is traced: of both in one program, the other's operations would be counted too.
    backward = {"plain": _gradients, "triton": triton_layer_norm_gradients}[chosen_here("layer_norm")]
    residual, dy = gradients
    return backward(*saved, dy, residual, epsilon=epsilon)


residual_layer_norm.defvjp(_forward, _backward)


def _normalise(x: Inputs, epsilon: float) -> tuple[Inputs, Float[Array, "*axes 1"]]:
    """(x of mean 0 and variance 1, what its distance from the mean was multiplied with)."""
    x = x.astype(jnp.float32)
    centred = x - x.mean(axis=-1, keepdims=True)
    factor = jax.lax.rsqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + epsilon)
    return centred * factor, factor


def _gradients(
    x: Inputs, scale: Channels, dy: Inputs, residual: Inputs, *, epsilon: float
) -> tuple[Inputs, Channels, Channels]:
    """Of x, the residual's added, of the scale and of the bias."""
    dy = computed_once(dy).astype(jnp.float32)
    normal, factor = _normalise(x, epsilon)
    dnormal = dy * scale
    along = (dnormal * normal).mean(axis=-1, keepdims=True)
    dx = factor * (dnormal - dnormal.mean(axis=-1, keepdims=True) - normal * along)
    return residual + dx.astype(x.dtype), sum_rows(dy * normal), sum_rows(dy)
