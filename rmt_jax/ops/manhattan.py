"""Manhattan self-attention (MaSA) of whole maps: from projected queries, keys and values to what they attend to.

One function with one backward pass, which keeps queries, keys and values and computes everything else again: logits
and weights are many times larger than what they are made of. What it computes with is up to the platform, see
`formulations`.

Axes: batch, height, width, channels = heads * dim.
"""

import functools

import jax
import numpy as np
from jax import Array
from jaxtyping import Float

from rmt_jax.ops import formulations
from rmt_jax.ops.formulations import Overrides, by_platform
from rmt_jax.ops.pallas_retention import fits, fused_retention_backward, fused_retention_forward
from rmt_jax.ops.retention import (
    Heads,
    axis_decay,
    decomposed_retention,
    full_retention,
    manhattan_decay,
    rotary_phase,
    rotate,
)

Map = Float[Array, "batch height width channels"]


def masa(q: Map, k: Map, v: Map, heads: Heads) -> Map:
    """Rotation, scaling by dim ** -0.5, logits, decay, softmax and values (paper, section 3.2).

    Args:
        q: queries as projected, each head's channels ordered by `pairs_to_halves`.
        k: keys as projected, ordered in the same way.
        v: values.
        heads: what they are.

    Returns:
        A map of v's shape and type.
    """
    return _masa(heads, q, k, v)


def attend(q: Map, k: Map, v: Map, heads: Heads) -> Map:
    """The same without its own backward pass or a choice of formulation: every picture at once."""
    batch, height, width, channels = q.shape
    log_rates = np.asarray(heads.log_rates, np.float32)
    dim = channels // len(log_rates)
    q, k, v = (x.reshape(batch, height, width, -1, dim) for x in (q, k, v))
    phase = rotary_phase(height, width, dim)[:, :, None]
    q, k = rotate(q, phase), rotate(k * dim**-0.5, phase)
    if heads.decomposed:
        decays = axis_decay(width, log_rates), axis_decay(height, log_rates)
        y = jax.vmap(decomposed_retention, in_axes=(0, 0, 0, None, None))(q, k, v, *decays)
    else:
        y = jax.vmap(full_retention, in_axes=(0, 0, 0, None))(q, k, v, manhattan_decay(height, width, log_rates))
    return y.reshape(batch, height, width, channels)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _masa(heads: Heads, q: Map, k: Map, v: Map) -> Map:
    return _result(heads, formulations.overrides(), q, k, v)


def _forward(heads: Heads, q: Map, k: Map, v: Map) -> tuple[Map, tuple[Map, Map, Map]]:
    return _masa(heads, q, k, v), (q, k, v)


def _backward(heads: Heads, saved: tuple[Map, Map, Map], dout: Map) -> tuple[Map, Map, Map]:
    return _gradients(heads, formulations.overrides(), *saved, dout)


_masa.defvjp(_forward, _backward)


# Compiled with what calls them; jitted so that the blocks of a stage trace them, kernels above all, once.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _result(heads: Heads, overrides: Overrides, q: Map, k: Map, v: Map) -> Map:
    at_once = functools.partial(attend, heads=heads)
    kernel = functools.partial(fused_retention_forward, heads) if _fits(heads, q) else at_once
    return by_platform("retention", overrides, {"at_once": at_once, "kernel": kernel}, q, k, v)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _gradients(heads: Heads, overrides: Overrides, q: Map, k: Map, v: Map, dout: Map) -> tuple[Map, Map, Map]:
    def at_once(q: Map, k: Map, v: Map, dout: Map) -> tuple[Map, Map, Map]:
        return jax.vjp(functools.partial(attend, heads=heads), q, k, v)[1](dout)

    kernel = functools.partial(fused_retention_backward, heads) if _fits(heads, q) else at_once
    return by_platform("retention", overrides, {"at_once": at_once, "kernel": kernel}, q, k, v, dout)


def _fits(heads: Heads, x: Map) -> bool:
    return fits(x.shape[1], x.shape[2], x.shape[3], x.dtype, heads)
