"""Retention of several heads at once on a TPU's units, forward and backward: values inside Pallas kernels.

A TPU's registers hold 8 sublanes of 128 lanes. The channels of all heads lie side by side on the lanes, and moving a
head of 16 or 32 channels elsewhere costs more than computing with it. So heads stay where they are, and products of
single heads come from masks: a copy of k in which all but one head's channels are zero, times q with all channels,
gives that head's logits. Copies of k for some of the heads are stacked on the sublanes of one operand, copies of q for
others on those of the other, and one product gives the logits of all heads:

    logits[class of keys * length + key, class of queries * length + query]
    head = class of queries * classes of keys + class of keys

The classes of queries fill the 128 lanes of the logits, most of which the queries of one head would leave empty. Keys
are on the sublanes, because maxima and sums over sublanes are additions of registers, while those over lanes were what
took the time of the kernels (by the compiler's schedules for v5e).

Axes: length (padded to 8 sublanes), lanes, rows = classes of keys * length, columns = classes of queries * length.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

LANES = 128
SUBLANES = 8
MASKED = -1e30  # the logit of a key that is not there

Channels = Float[Array, "length lanes"]
Logits = Float[Array, "rows columns"]
Ranges = list[tuple[int, int]]


def round_up(size: int, multiple: int) -> int:
    """The next multiple."""
    return -(-size // multiple) * multiple


@dataclasses.dataclass(frozen=True)
class HeadStack:
    """How the heads of one group of lanes are stacked.

    Attributes:
        heads: how many there are.
        head_dim: channels of each, side by side from lane 0; lanes after the last head are ignored.
        length: queries and keys, a multiple of 8, of which some may be padding.
    """

    heads: int
    head_dim: int
    length: int

    @property
    def query_classes(self) -> int:
        """As many as fit on the lanes of the logits."""
        return min(self.heads, max(1, LANES // self.length))

    @property
    def key_classes(self) -> int:
        """What is left; a few pairs of classes may be no head, whose logits nothing reads."""
        return -(-self.heads // self.query_classes)

    @property
    def rows(self) -> int:
        """Sublanes of the logits."""
        return self.key_classes * self.length

    @property
    def columns(self) -> int:
        """Lanes of the logits."""
        return self.query_classes * self.length

    @property
    def query_lanes(self) -> list[Ranges]:
        """The lanes of each class of queries: its heads are neighbours."""
        firsts = range(0, self.heads, self.key_classes)
        lanes: list[Ranges] = [
            [(first * self.head_dim, min(first + self.key_classes, self.heads) * self.head_dim)] for first in firsts
        ]
        return lanes + [[(0, 0)]] * (self.query_classes - len(lanes))

    @property
    def key_lanes(self) -> list[Ranges]:
        """The lanes of each class of keys: one head of every class of queries."""
        return [
            [(head * self.head_dim, (head + 1) * self.head_dim) for head in range(i, self.heads, self.key_classes)]
            for i in range(self.key_classes)
        ]

    def over_keys(self, x: Logits, reduction: Callable[..., Array]) -> Logits:
        """Over the keys of each class; the result is repeated for each of them."""
        reduced = [
            jnp.broadcast_to(reduction(part, axis=0, keepdims=True), part.shape)
            for part in jnp.split(x, self.key_classes, axis=0)
        ]
        return jnp.concatenate(reduced, axis=0)


def _inside(shape: tuple[int, ...], ranges: Ranges) -> Bool[Array, "_ _"]:
    """Which lanes lie in one of the ranges."""
    lane = jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    return functools.reduce(jnp.logical_or, [(lane >= start) & (lane < stop) for start, stop in ranges])


def _stack(x: Channels, classes: list[Ranges], dtype: jnp.dtype) -> Float[Array, "_ lanes"]:
    """A copy for each class, zero in all other lanes."""
    return jnp.concatenate([jnp.where(_inside(x.shape, ranges), x, 0) for ranges in classes], axis=0).astype(dtype)


def _pick(x: Float[Array, "_ lanes"], classes: list[Ranges]) -> Channels:
    """From each copy its own lanes."""
    picked, *others = jnp.split(x, len(classes), axis=0)
    for other, ranges in zip(others, classes[1:], strict=True):
        picked = jnp.where(_inside(other.shape, ranges), other, picked)
    return picked


def decay_logits(
    stack: HeadStack, key_class: int, log_rates: Sequence[float], width: int | None, valid: int
) -> Float[Array, "length columns"]:
    """log(gamma) times the distance for one class of keys, `MASKED` for keys that are padding.

    Args:
        stack: how heads are stacked.
        key_class: which rows.
        log_rates: log(gamma) of each head.
        width: of a row of a map whose tokens are all attended to, padded: the distance is Manhattan's.
            None along an axis: it is that of the indices.
        valid: the keys that are no padding: of the axis, or of each row of the map.
    """
    shape = (stack.length, stack.columns)
    key = jax.lax.broadcasted_iota(jnp.int32, shape, 0).astype(jnp.float32)
    column = jax.lax.broadcasted_iota(jnp.int32, shape, 1).astype(jnp.float32)
    query_class = _quotient(column, stack.length)
    query = column - query_class * stack.length
    if width is None:
        distance, position = jnp.abs(query - key), key
    else:
        query_row, key_row = _quotient(query, width), _quotient(key, width)
        query_column, position = query - query_row * width, key - key_row * width
        distance = jnp.abs(query_row - key_row) + jnp.abs(query_column - position)
    rate = jnp.zeros(shape, jnp.float32)
    for i, log_rate in enumerate(log_rates[key_class :: stack.key_classes]):
        rate = jnp.where(query_class == i, log_rate, rate)
    return jnp.where(position < valid, rate * distance, MASKED)


def _quotient(x: Array, divisor: int) -> Array:
    """Of whole numbers as floats: vectors of integers have no division."""
    return jnp.floor((x + 0.5) / divisor)


def _product(x: Array, y: Array, contract: tuple[int, int]) -> Array:
    """A matrix product with float32 sums, over one axis of each; float32 operands are not rounded."""
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    dimensions = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(x, y, dimensions, precision=precision, preferred_element_type=jnp.float32)


def attend(stack: HeadStack, q: Channels, k: Channels, v: Channels, decay: Logits, dtype: jnp.dtype) -> Channels:
    """softmax(q k^T + decay) v of every head.

    Args:
        stack: how heads are stacked.
        q: float32, rotated.
        k: float32, rotated and scaled. Padding is finite, here and in v.
        v: float32.
        decay: see `decay_logits`.
        dtype: operands of the products.
    """
    weights = _weights(stack, _stack(k, stack.key_lanes, dtype), _stack(q, stack.query_lanes, dtype), decay)
    weighted = _product(weights.astype(dtype), _stack(v, stack.key_lanes, dtype), (0, 0))
    return _pick(weighted, stack.query_lanes)


def attend_backward(
    stack: HeadStack, q: Channels, k: Channels, v: Channels, dy: Channels, decay: Logits, dtype: jnp.dtype
) -> tuple[Channels, Channels, Channels]:
    """Gradients of `attend` for q, k and v from that of its result, the weights computed again.

    Queries that are padding have a gradient of zero in `dy`, keys that are padding get one.
    """
    stacked_q, stacked_dy = _stack(q, stack.query_lanes, dtype), _stack(dy, stack.query_lanes, dtype)
    stacked_k, stacked_v = _stack(k, stack.key_lanes, dtype), _stack(v, stack.key_lanes, dtype)
    weights = _weights(stack, stacked_k, stacked_q, decay)
    dv = _pick(_product(weights.astype(dtype), stacked_dy, (1, 0)), stack.key_lanes)
    dweights = _product(stacked_v, stacked_dy, (1, 1))
    dlogits = (weights * (dweights - stack.over_keys(weights * dweights, jnp.sum))).astype(dtype)
    dq = _pick(_product(dlogits, stacked_k, (0, 0)), stack.query_lanes)
    dk = _pick(_product(dlogits, stacked_q, (1, 0)), stack.key_lanes)
    return dq, dk, dv


def _weights(stack: HeadStack, k: Array, q: Array, decay: Logits) -> Logits:
    """Of stacked heads: the softmax over the keys of each class.

    Normalised before the product with v, unlike `ops.retention`: there it saves memory traffic, here sums are where
    weights are, and not where values are.
    """
    logits = _product(k, q, (1, 1)) + decay
    weights = jnp.exp(logits - stack.over_keys(logits, jnp.max))
    return weights * (1 / stack.over_keys(weights, jnp.sum))
