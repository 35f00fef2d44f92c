"""Retention along one axis as Pallas kernels for GPUs, by Triton: logits and weights stay in registers.

XLA writes the logits and the weights of every head to memory and reads them again, many times what the maps take. Here
a program has one head of one row, column or whole map, whose queries it takes in blocks; the backward kernel computes
the weights again from queries and keys. Rotation and scaling are XLA's, before and after.

Axes: batch, height, width, channels = heads * dim.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import pallas as pl
from jax.typing import DTypeLike
from jaxtyping import Float

from rmt_jax.ops.retention import Heads

try:
    from jax.experimental.pallas import triton as plt
except ImportError:  # a later jax, see `formulations`
    plt = None  # type: ignore[assignment]

Map = Float[Array, "batch height width channels"]
Gradients = tuple[Map, Map, Map]

_SMALLEST_TILE = 16  # of a product, along each side
_MOST_KEYS = 256  # of which a block of queries has its logits in registers
_QUERIES = 64  # of a block, at most
_HIDDEN = -1e30  # a logit of what is not there: finite, so that rows of nothing but these stay finite


class _Lines(NamedTuple):
    """What the sequences of a kernel are.

    Attributes:
        width: positions along a row of the map, for the distance between tokens of a whole map; 0 for a line of it.
        down: sequences are columns; otherwise rows, of which a whole map is one.
    """

    width: int
    down: bool


_ROWS, _COLUMNS = _Lines(0, down=False), _Lines(0, down=True)


def triton_fits(height: int, width: int, channels: int, dtype: DTypeLike, heads: Heads) -> bool:
    """Whether the kernels can work with a map: in bfloat16, with heads of 16 or 32 channels as all published models
    have, and up to 256 positions along an axis, or 256 tokens where all are attended to at once.

    Args:
        height: of the map.
        width: of the map.
        channels: of the map.
        dtype: of q, k and v. In float32 Triton's products are slower than XLA's, or less exact.
        heads: of the channels.
    """
    dim, rest = divmod(channels, len(heads.log_rates))
    length = max(height, width) if heads.decomposed else height * width
    return rest == 0 and dim in (16, 32) and length <= _MOST_KEYS and jnp.dtype(dtype) == jnp.bfloat16


def triton_retention(heads: Heads, q: Map, k: Map, v: Map, *, interpret: bool = False) -> Map:
    """Both axes one after the other, or all tokens at once.

    Args:
        heads: how the channels attend.
        q: queries, rotated.
        k: keys, rotated and scaled.
        v: values, of q's type.
        interpret: run without a GPU, slowly, for tests.

    Returns:
        A map of v's shape and type. Logits, softmax and sums are float32.
    """
    for lines in _axes(heads, v):
        v = _along(lines, functools.partial(_forward_kernel, lines), heads, 1, interpret, q, k, v)[0]
    return v


def triton_retention_gradients(
    heads: Heads, q: Map, k: Map, v: Map, dout: Map, *, interpret: bool = False
) -> tuple[Map, Map, Map]:
    """Gradients of q and k, float32, and of v, as `triton_retention` takes them, from that of its result."""
    *before, last = _axes(heads, v)
    values = [v]
    for lines in before:
        values += _along(lines, functools.partial(_forward_kernel, lines), heads, 1, interpret, q, k, values[-1])
    found = []
    for lines in (last, *reversed(before)):
        kernel = functools.partial(_backward_kernel, lines)
        dq, dk, dout = _along(lines, kernel, heads, 3, interpret, q, k, values.pop(), dout)
        found.append((dq, dk))
    dq, dk = (sum(part.astype(jnp.float32) for part in parts) for parts in zip(*found, strict=True))
    return jnp.asarray(dq), jnp.asarray(dk), dout


def _axes(heads: Heads, x: Map) -> tuple[_Lines, ...]:
    return (_ROWS, _COLUMNS) if heads.decomposed else (_Lines(x.shape[2], down=False),)


def _along(lines: _Lines, kernel: Any, heads: Heads, results: int, interpret: bool, *maps: Map) -> list[Map]:
    """The kernel for every head of every sequence; operands and results are maps of one shape and type."""
    shape = maps[0].shape
    if lines.width:
        maps = tuple(x.reshape(shape[0], 1, -1, shape[3]) for x in maps)
    batch, height, width, _ = maps[0].shape
    sequences, length = (width, height) if lines.down else (height, width)
    found = pl.pallas_call(
        kernel,
        grid=(len(heads.log_rates), sequences, batch),  # the heads of a sequence next to each other: they share lines
        out_shape=[jax.ShapeDtypeStruct(maps[0].shape, maps[0].dtype)] * results,
        compiler_params=plt.CompilerParams(num_warps=_warps(length), num_stages=1),
        interpret=interpret,
        name=f"retention_{'forward' if results == 1 else 'backward'}",
    )(np.asarray(heads.log_rates, np.float32), *maps)
    return [x.reshape(shape) for x in found]


def _warps(length: int) -> int:
    return 1 if length <= 16 else 4


class _Head:
    """One head of one sequence, as a program sees it.

    Args:
        lines: what sequences are.
        log_rates: the operand.
        shape: of the maps.
    """

    def __init__(self, lines: _Lines, log_rates: Any, shape: tuple[int, ...]):
        self._lines = lines
        self._head, self._sequence, self._picture = (pl.program_id(axis) for axis in range(3))
        self._rate = log_rates[self._head]
        self._dim = shape[3] // log_rates.shape[0]
        self._length = shape[1] if lines.down else shape[2]
        self.keys = max(_SMALLEST_TILE, pl.next_power_of_2(self._length))
        self.queries = min(_QUERIES, self.keys)

    def over_queries(self, function: Callable[[Array, Any], Any], carry: Any) -> Any:
        """A loop over blocks of queries, the last of which may reach beyond the sequence: (first query, carry)."""
        blocks = pl.cdiv(self._length, self.queries)
        return jax.lax.fori_loop(0, blocks, lambda block, carry: function(block * self.queries, carry), carry)

    def load(self, ref: Any, start: int | Array, size: int) -> Array:
        """[size dim], with zeros beyond the sequence."""
        return plt.load(self._part(ref, start, size), mask=self._inside(start, size), other=0)

    def store(self, ref: Any, start: int | Array, value: Array) -> None:
        """The part of it that is in the sequence."""
        mask = self._inside(start, len(value))
        plt.store(self._part(ref, start, len(value)), value.astype(ref.dtype), mask=mask)

    def weights(self, q: Array, k: Array, start: int | Array) -> tuple[Array, Array]:
        """([queries keys] exponentials of the logits less their largest, [queries 1] their sums), float32."""
        logits = _dot(q, k.T) + self._rate * self._distance(start, len(q), len(k)).astype(jnp.float32)
        logits = jnp.where(jnp.arange(len(k))[None, :] < self._length, logits, _HIDDEN)
        weights = jnp.exp(logits - logits.max(axis=1)[:, None])
        return weights, weights.sum(axis=1)[:, None]

    def _part(self, ref: Any, start: int | Array, size: int) -> Any:
        positions, channels = pl.ds(start, size), pl.ds(self._head * self._dim, self._dim)
        line = (positions, self._sequence) if self._lines.down else (self._sequence, positions)
        return ref.at[(self._picture, *line, channels)]

    def _inside(self, start: int | Array, size: int) -> Array:
        return jnp.broadcast_to((start + jnp.arange(size))[:, None] < self._length, (size, self._dim))

    def _distance(self, start: int | Array, queries: int, keys: int) -> Array:
        """Of queries from keys: along a line, or of tokens of a map along both axes together."""
        query, key = start + jnp.arange(queries)[:, None], jnp.arange(keys)[None, :]
        width = self._lines.width
        if not width:
            return jnp.abs(query - key)
        # Of numbers that are not negative, for which there is no need to round down.
        rows, columns = (
            jnp.abs(part(query, jnp.int32(width)) - part(key, jnp.int32(width))) for part in (jax.lax.div, jax.lax.rem)
        )
        return rows + columns


def _forward_kernel(lines: _Lines, log_rates: Any, q_ref: Any, k_ref: Any, v_ref: Any, out_ref: Any) -> None:
    head = _Head(lines, log_rates, q_ref.shape)
    k, v = (head.load(ref, 0, head.keys) for ref in (k_ref, v_ref))

    def attend(start: Array, _: None) -> None:
        weights, total = head.weights(head.load(q_ref, start, head.queries), k, start)
        head.store(out_ref, start, _dot(weights.astype(v.dtype), v) / total)

    head.over_queries(attend, None)


def _backward_kernel(
    lines: _Lines,
    log_rates: Any,
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    dout_ref: Any,
    dq_ref: Any,
    dk_ref: Any,
    dv_ref: Any,
) -> None:
    head = _Head(lines, log_rates, q_ref.shape)
    k, v = (head.load(ref, 0, head.keys) for ref in (k_ref, v_ref))

    def attend(start: Array, gradients: tuple[Array, Array]) -> tuple[Array, Array]:
        dk, dv = gradients
        q, dout = (head.load(ref, start, head.queries) for ref in (q_ref, dout_ref))
        weights, total = head.weights(q, k, start)
        weights = weights / total
        dweights = _dot(dout, v.T)
        dlogits = (weights * (dweights - (weights * dweights).sum(axis=1)[:, None])).astype(k.dtype)
        head.store(dq_ref, start, _dot(dlogits, k))
        return dk + _dot(dlogits.T, q), dv + _dot(weights.astype(v.dtype).T, dout)

    zeros = jnp.zeros(k.shape, jnp.float32)
    dk, dv = head.over_queries(attend, (zeros, zeros))
    head.store(dk_ref, 0, dk)
    head.store(dv_ref, 0, dv)


def _dot(x: Array, y: Array) -> Array:
    return jnp.dot(x, y, preferred_element_type=jnp.float32, precision=jax.lax.Precision.HIGHEST)
