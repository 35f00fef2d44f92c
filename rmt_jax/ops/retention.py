"""Manhattan self-attention (MaSA): one primitive for one head along one axis, and `jax.vmap` for everything else.

Axes: height, width, heads, dim, tokens = height * width. Logits, softmax, rotary phases and decay are float32 whatever
the compute type.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from rmt_jax.ops.formulations import chosen_here
from rmt_jax.ops.linear import computed_once

Queries = Float[Array, "queries dim"]
Keys = Float[Array, "length dim"]
Values = Float[Array, "length value_dim"]
Weighted = Float[Array, "queries value_dim"]
Logits = Float[Array, "queries length"]
Sums = Float[Array, "queries 1"]
Maps = Float[Array, "batch height width heads dim"]
Image = Float[Array, "height width heads dim"]
Rows = Float[Array, "rows width heads dim"]

# `_over_queries`, in a whole gradient: 56 queries gain by its other form, 196 lose (docs/performance.md).
MOST_QUERIES = 128


class Heads(NamedTuple):
    """How the channels of a map attend.

    Attributes:
        log_rates: log(gamma) of each head, see `log_decay_rates`; as many as there are heads.
        decomposed: along the width and then along the height, or over all tokens at once.
    """

    log_rates: tuple[float, ...]
    decomposed: bool


@jax.custom_vjp
def retention(q: Queries, k: Keys, v: Values, decay: Logits) -> Weighted:
    """softmax(q k^T + decay) v for one head along one axis (paper, section 3.2).

    The paper writes softmax(q k^T) * D; with `decay` = log D the two agree once the rows are normalised again, and
    upstream computes this one. The rows are normalised after the product with v, [queries value_dim] numbers
    instead of [queries length]: the same result with fewer bytes moved. `reference.retention` is the specification.

    Args:
        q: queries, rotated.
        k: keys, rotated and scaled by dim ** -0.5.
        v: values.
        decay: float32 log-decay, added to the logits.

    Returns:
        [queries value_dim] in the type of v.
    """
    return _with_weights(q, k, v, decay)[0]


def _with_weights(q: Queries, k: Keys, v: Values, decay: Logits) -> tuple[Weighted, Logits, Sums]:
    """(the result, weights that are not normalised yet, the sums of their rows)."""
    logits = _product("qd,kd->qk", q, k) + decay
    weights = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
    sums = weights.sum(axis=-1, keepdims=True)
    return (_product("qk,kd->qd", weights.astype(v.dtype), v) / sums).astype(v.dtype), weights, sums


def _forward(q: Queries, k: Keys, v: Values, decay: Logits) -> tuple[Weighted, tuple[Array, ...]]:
    result, weights, sums = _with_weights(q, k, v, decay)
    weights, sums = computed_once((weights, sums))
    return result, (q, k, v, result, weights, sums)


def _backward(saved: tuple[Array, ...], dresult: Weighted) -> tuple[Queries, Keys, Values, Logits]:
    q, k, v, result, weights, sums = saved
    dweighted = dresult.astype(jnp.float32) / sums
    # The result is weighted / sums, so its gradient along sums is -result / sums.
    dsums = -(dweighted * result.astype(jnp.float32)).sum(axis=-1, keepdims=True)
    dweighted = dweighted.astype(v.dtype)
    dlogits = computed_once(weights * (_product("qd,kd->qk", dweighted, v) + dsums))
    rounded = dlogits.astype(k.dtype)
    dq, dk = _product("qk,kd->qd", rounded, k), _over_queries(rounded, q)
    dv = _over_queries(weights.astype(v.dtype), dweighted)
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), dlogits


retention.defvjp(_forward, _backward)


def _product(axes: str, a: Float[Array, "_ _"], b: Float[Array, "_ _"]) -> Float[Array, "_ _"]:
    return jnp.einsum(axes, a, b, preferred_element_type=jnp.float32)


def _over_queries(weights: Logits, x: Float[Array, "queries columns"]) -> Float[Array, "length columns"]:
    """weights^T x; of few queries as (x^T weights)^T, which XLA for CPUs hands to a library."""
    if len(weights) > MOST_QUERIES:
        return _product("qk,qd->kd", weights, x)
    return computed_once(_product("dq,qk->dk", computed_once(x.T), weights)).T


def _heads(
    q: Float[Array, "queries heads dim"],
    k: Float[Array, "length heads dim"],
    v: Float[Array, "length heads dim"],
    decay: Float[Array, "heads queries length"],
) -> Float[Array, "queries heads dim"]:
    # Heads first in memory: XLA for CPUs rotates while it moves them there, and multiplies what it finds there.
    q, k, v = (jnp.moveaxis(x, 1, 0) for x in (q, k, v))
    return jnp.moveaxis(jax.vmap(retention)(q, k, v, decay), 0, 1)


_lines = jax.vmap(_heads, in_axes=(0, 0, 0, None))


def decomposed_retention(
    q: Maps,
    k: Maps,
    v: Maps,
    width_decay: Float[Array, "heads width width"],
    height_decay: Float[Array, "heads height height"],
) -> Maps:
    """Retention along the width, then along the height of that result, one softmax an axis (paper, equation 6).

    O(tokens ** 1.5) in time and memory.
    """
    y = _along_width(q, k, v, width_decay)
    return _turned(_along_width(_turned(q), _turned(k), _turned(y), height_decay))


def _along_width(q: Maps, k: Maps, v: Maps, decay: Float[Array, "heads width width"]) -> Maps:
    # The lines of all maps as one axis: XLA's library for CPUs takes longer for products with three leading axes.
    q, k, lines = (x.reshape(-1, *x.shape[2:]) for x in (q, k, v))
    return _lines(q, k, lines, decay).reshape(v.shape)


def _turned(x: Float[Array, "batch height width heads dim"]) -> Float[Array, "batch width height heads dim"]:
    return jnp.swapaxes(x, 1, 2)


def full_retention(q: Image, k: Image, v: Image, decay: Float[Array, "heads tokens tokens"]) -> Image:
    """Retention over all tokens with the Manhattan distance (paper, equation 4)."""
    flat = functools.partial(jnp.reshape, shape=(-1, *q.shape[2:]))
    return _heads(flat(q), flat(k), flat(v), decay).reshape(v.shape)


def full_retention_by_rows(
    q: Image,
    k: Image,
    v: Image,
    width_decay: Float[Array, "heads width width"],
    height_decay: Float[Array, "heads height height"],
    *,
    rows: int,
) -> Image:
    """`full_retention` with the logits of some rows of queries at a time, and again at a time in the backward pass.

    For maps such as a detector's, whose logits of all queries are hundreds of megabytes. The Manhattan decay is the sum
    of the decays along both axes, made for the same queries only.

    Args:
        q: queries, rotated.
        k: keys, rotated and scaled.
        v: values.
        width_decay: along a row, as `axis_decay` gives it; -inf hides the keys of a column.
        height_decay: along a column; -inf hides the keys of a row.
        rows: of queries at a time, at most; as many as make blocks of one size.
    """
    height, _, heads, _ = q.shape
    blocks = -(-height // rows)
    rows = -(-height // blocks)
    flat = functools.partial(jnp.reshape, shape=(-1, *q.shape[2:]))
    k, v = flat(k), flat(v)

    def attend(block: tuple[Rows, Float[Array, "rows heads height"]]) -> Rows:
        q, down = block
        decay = jnp.moveaxis(down, 1, 0)[:, :, None, :, None] + width_decay[:, None, :, None, :]
        return _heads(flat(q), k, v, decay.reshape(heads, -1, len(k))).reshape(q.shape)

    def split(x: Float[Array, "height ..."]) -> Float[Array, "blocks rows ..."]:
        padded = jnp.pad(x, [(0, blocks * rows - height)] + [(0, 0)] * (x.ndim - 1))
        return padded.reshape(blocks, rows, *x.shape[1:])

    attend = jax.checkpoint(attend, prevent_cse=False)  # lax.map's loop keeps the recomputation apart
    y = jax.lax.map(attend, (split(q), split(jnp.moveaxis(height_decay, 0, 1))))
    return y.reshape(-1, *q.shape[1:])[:height]


def log_decay_rates(num_heads: int, start: float | int, span: float | int) -> Float[np.ndarray, " heads"]:
    """log(gamma) of each head: gamma_i = 1 - 2 ** (-start - span * i / num_heads), upstream's `Relpos.decay`.

    Written in float32, operation by operation, because 1 - gamma is small: a float64 result would differ by 1e-5.
    """
    exponent = -np.float32(start) - np.float32(span) * np.arange(num_heads, dtype=np.float32) / np.float32(num_heads)
    return np.log(np.float32(1) - np.float32(2) ** exponent)


def axis_decay(length: int, log_rates: Float[np.ndarray, " heads"]) -> Float[Array, "heads length length"]:
    """log(gamma) * |i - j| along one axis."""
    position = jnp.arange(length, dtype=jnp.float32)
    return jnp.asarray(log_rates)[:, None, None] * jnp.abs(position[:, None] - position[None, :])


def manhattan_decay(
    height: int, width: int, log_rates: Float[np.ndarray, " heads"]
) -> Float[Array, "heads tokens tokens"]:
    """log(gamma) * (|h - h'| + |w - w'|) between all positions of a map, row by row."""
    rows, columns = axis_decay(height, log_rates), axis_decay(width, log_rates)
    tokens = height * width
    return (rows[:, :, None, :, None] + columns[:, None, :, None, :]).reshape(len(log_rates), tokens, tokens)


def rotary_angles(dim: int) -> Float[np.ndarray, " pairs"]:
    """Angle per step of each pair of channels, 10000 ** -linspace(0, 1, dim / 2), in radians.

    Upstream's `Relpos.angle` holds each twice.
    """
    return np.float32(1) / np.float32(10000) ** np.linspace(0, 1, dim // 2, dtype=np.float32)


def rotary_phase(height: int, width: int, dim: int) -> Float[np.ndarray, "height width pairs"]:
    """Phase of every position in radians: the angle times the flat index h * width + w.

    So the phase from one row to the next depends on the width of the map, as upstream's does.
    """
    index = np.arange(height * width, dtype=np.float32).reshape(height, width, 1)
    return index * rotary_angles(dim)


def canvas_rows(
    table: Float[np.ndarray, "height width pairs"], widths: Int[Array, " batch"]
) -> Float[Array, "batch height width pairs"]:
    """A function of the flat index h * width + w at positions of pictures that are narrower than their canvas.

    Args:
        table: the function, of the canvas's own positions.
        widths: of the pictures, in positions; what lies beside them gets other values of the table.
    """
    height, width, pairs = table.shape
    row = functools.partial(jax.lax.dynamic_slice_in_dim, jnp.asarray(table.reshape(-1, pairs)), slice_size=width)
    return jax.vmap(jax.vmap(row))(jnp.arange(height) * widths[:, None])


def pairs_to_halves(x: Float[Array, "*axes channels"], num_heads: int) -> Float[Array, "*axes channels"]:
    """Reorder each head's channels from x0 y0 x1 y1 ... to x0 x1 ... y0 y1 ..., where (x, y) are turned together.

    Upstream's weights have pairs side by side. Applied to the columns of the query and key projections, which are
    small, this changes no product of a query with a key, and `rotate` works on halves instead of every other number.
    """
    pairs = x.reshape(*x.shape[:-1], num_heads, -1, 2)
    if chosen_here("halves") == "strides":
        return jnp.concatenate([pairs[..., 0], pairs[..., 1]], axis=-1).reshape(x.shape)
    return jnp.swapaxes(pairs, -1, -2).reshape(x.shape)


def rotate(
    x: Float[Array, "*tokens dim"], phase: Float[np.ndarray, "*phase_tokens pairs"]
) -> Float[Array, "*tokens dim"]:
    """Turn each pair of channels (x[i], x[i + dim / 2]): (a, b) -> (a cos - b sin, b cos + a sin).

    Args:
        x: queries or keys, ordered by `pairs_to_halves`.
        phase: radians, one for each pair; broadcasts against the leading axes of x. Known when the function is
            compiled, so that sines and cosines are constants: XLA would compute them again for every picture and head.
    """
    return turn(x, np.sin(phase), np.cos(phase))


def turn(
    x: Float[Array, "*tokens dim"],
    sin: Float[Array | np.ndarray, "*phase_tokens pairs"],
    cos: Float[Array | np.ndarray, "*phase_tokens pairs"],
) -> Float[Array, "*tokens dim"]:
    """`rotate` by phases with these sines and cosines."""
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
