"""Manhattan self-attention (MaSA) of whole maps: from projected queries, keys and values to what they attend to.

One function with one backward pass, which keeps queries, keys and values and computes everything else again: logits
and weights are many times larger than what they are made of. What it computes with is up to the platform, see
`formulations`.

Axes: batch, height, width, channels = heads * dim.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from rmt_jax.ops.canvas import Valid
from rmt_jax.ops.formulations import chosen_here
from rmt_jax.ops.linear import computed_once
from rmt_jax.ops.pallas_retention import fits, fused_retention_backward, fused_retention_forward
from rmt_jax.ops.retention import (
    Heads,
    axis_decay,
    canvas_rows,
    decomposed_retention,
    full_retention,
    full_retention_by_rows,
    manhattan_decay,
    rotary_phase,
    rotate,
    turn,
)
from rmt_jax.ops.triton_retention import triton_fits, triton_retention, triton_retention_gradients

Map = Float[Array, "batch height width channels"]
HeadMap = Float[Array, "batch height width heads dim"]
Saved = tuple[Map, Map, Map, Valid | None]

# Above so many logits of a picture, 128 MB of float32, full retention works on some rows of queries at a time.
MOST_LOGITS = 2**25
LOGITS_AT_A_TIME = 2**24


def masa(q: Map, k: Map, v: Map, heads: Heads, valid: Valid | None = None) -> Map:
    """Rotation, scaling by dim ** -0.5, logits, decay, softmax and values (paper, section 3.2).

    Args:
        q: queries as projected, each head's channels ordered by `pairs_to_halves`.
        k: keys as projected, ordered in the same way.
        v: values.
        heads: what they are.
        valid: sizes of the pictures where they do not fill their maps: what is outside of them is not attended to, and
            rotary phases are those of a map as wide as the picture. There is no kernel for it.

    Returns:
        A map of v's shape and type.
    """
    return _masa(heads, q, k, v, valid)


def attend(q: Map, k: Map, v: Map, heads: Heads, valid: Valid | None = None) -> Map:
    """The same without its own backward pass or a choice of formulation: every picture at once."""
    batch, height, width, channels = q.shape
    log_rates = np.asarray(heads.log_rates, np.float32)
    q, k = _prepared(heads, q, k, valid)
    q, k, v = (x.reshape(batch, height, width, len(log_rates), -1) for x in (q, k, v))
    large = len(log_rates) * (height * width) ** 2 > MOST_LOGITS
    if heads.decomposed or large or valid is not None:
        decays = computed_once((_axis_decay(width, log_rates, valid, 1), _axis_decay(height, log_rates, valid, 0)))
        rows = max(1, LOGITS_AT_A_TIME // (len(log_rates) * height * width**2))
        by_rows = jax.vmap(functools.partial(full_retention_by_rows, rows=rows), in_axes=(0, 0, 0, None, None))
        along_axes = decomposed_retention if heads.decomposed else by_rows
        if valid is None:
            y = along_axes(q, k, v, *decays)
        else:  # decays are a picture's own, so each is a batch of one
            y = jax.vmap(along_axes)(q[:, None], k[:, None], v[:, None], *decays)
    else:
        decay = computed_once(manhattan_decay(height, width, log_rates))
        y = jax.vmap(full_retention, in_axes=(0, 0, 0, None))(q, k, v, decay)
    return y.reshape(batch, height, width, channels)


def _prepared(heads: Heads, q: Map, k: Map, valid: Valid | None = None) -> tuple[Map, Map]:
    """Queries rotated, keys scaled and rotated."""
    dim = q.shape[-1] // len(heads.log_rates)
    q, k = (_rotated(x.reshape(*x.shape[:-1], -1, dim), valid).reshape(x.shape) for x in (q, k * dim**-0.5))
    return q, k


def _prepared_exactly(heads: Heads, q: Map, k: Map) -> tuple[Map, Map]:
    """The same in float32: what kernels take and give back is rounded once, in the pass that rotates."""
    return _prepared(heads, q.astype(jnp.float32), k.astype(jnp.float32))


def _rotated(x: HeadMap, valid: Valid | None) -> HeadMap:
    _, height, width, _, dim = x.shape
    phase = rotary_phase(height, width, dim)
    if valid is None:
        return rotate(x, phase[:, :, None])
    sin, cos = (canvas_rows(table, valid[:, 1])[:, :, :, None] for table in (np.sin(phase), np.cos(phase)))
    return turn(x, sin, cos)


def _axis_decay(length: int, log_rates: Float[np.ndarray, " heads"], valid: Valid | None, axis: int) -> Array:
    """[heads length length]; with sizes one for each picture, in which keys outside of it are hidden."""
    decay = axis_decay(length, log_rates)
    if valid is None:
        return decay
    return jnp.where(jnp.arange(length) < valid[:, axis, None, None, None], decay, -jnp.inf)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _masa(heads: Heads, q: Map, k: Map, v: Map, valid: Valid | None) -> Map:
    return _result(heads, _formulation(heads, q, valid), q, k, v, valid)


def _forward(heads: Heads, q: Map, k: Map, v: Map, valid: Valid | None) -> tuple[Map, Saved]:
    return _masa(heads, q, k, v, valid), (q, k, v, valid)


def _backward(heads: Heads, saved: Saved, dout: Map) -> tuple[Map, Map, Map, None]:
    q, _, _, valid = saved
    return *_gradients(heads, _formulation(heads, q, valid), *saved, dout), None


_masa.defvjp(_forward, _backward)


# Compiled with what calls them; jitted so that the blocks of a stage trace them, kernels above all, once.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _result(heads: Heads, formulation: str, q: Map, k: Map, v: Map, valid: Valid | None) -> Map:
    if formulation == "kernel":
        return fused_retention_forward(heads, q, k, v)
    if formulation == "triton":
        q, k = (x.astype(v.dtype) for x in _prepared_exactly(heads, q, k))
        return triton_retention(heads, q, k, v)
    return attend(q, k, v, heads, valid)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _gradients(
    heads: Heads, formulation: str, q: Map, k: Map, v: Map, valid: Valid | None, dout: Map
) -> tuple[Map, Map, Map]:
    if formulation == "kernel":
        return fused_retention_backward(heads, q, k, v, dout)
    if formulation == "triton":
        prepared, back = jax.vjp(functools.partial(_prepared_exactly, heads), q, k)
        q, k = (x.astype(v.dtype) for x in prepared)
        dq, dk, dv = triton_retention_gradients(heads, q, k, v, dout)
        return *back((dq, dk)), dv
    q, k, v, dout = computed_once((q, k, v, dout))
    return jax.vjp(functools.partial(attend, heads=heads, valid=valid), q, k, v)[1](dout)


def _formulation(heads: Heads, x: Map, valid: Valid | None) -> str:
    """The platform's, but all pictures at once in place of a kernel that does not fit."""
    choice = chosen_here("retention")
    _, height, width, channels = x.shape
    fit = {"kernel": fits, "triton": triton_fits}.get(choice)
    if fit is None or (valid is None and fit(height, width, channels, x.dtype, heads)):
        return choice
    return "at_once"
