"""LayerNorm with its own backward pass, for the sake of CPUs."""

import functools

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from rmt_jax.ops.linear import computed_once, sum_rows

Inputs = Float[Array, "*axes channels"]
Channels = Float[Array, " channels"]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(x: Inputs, scale: Channels, bias: Channels, epsilon: float) -> Inputs:
    """(x - mean) / sqrt(var + epsilon) * scale + bias over the channels, computed in float32.

    In two passes: E[x^2] - E[x]^2 fails for large means. The gradients are the usual ones; as in `linear`, what comes
    back is computed once on a CPU, and summed by a product with ones.

    Returns:
        float32, whatever the type of x.
    """
    normal, _ = _normalise(x, epsilon)
    return normal * scale + bias


def _normalise(x: Inputs, epsilon: float) -> tuple[Inputs, Float[Array, "*axes 1"]]:
    """(x of mean 0 and variance 1, what its distance from the mean was multiplied with)."""
    x = x.astype(jnp.float32)
    centred = x - x.mean(axis=-1, keepdims=True)
    factor = jax.lax.rsqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + epsilon)
    return centred * factor, factor


def _forward(x: Inputs, scale: Channels, bias: Channels, epsilon: float) -> tuple[Inputs, tuple[Inputs, Channels]]:
    return layer_norm(x, scale, bias, epsilon), (x, scale)


def _backward(epsilon: float, saved: tuple[Inputs, Channels], dy: Inputs) -> tuple[Inputs, Channels, Channels]:
    x, scale = saved
    dy = computed_once(dy)
    normal, factor = _normalise(x, epsilon)
    dnormal = dy * scale
    along = (dnormal * normal).mean(axis=-1, keepdims=True)
    dx = factor * (dnormal - dnormal.mean(axis=-1, keepdims=True) - normal * along)
    return dx.astype(x.dtype), sum_rows(dy * normal), sum_rows(dy)


layer_norm.defvjp(_forward, _backward)
