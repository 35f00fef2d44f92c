"""Retention of several heads at once on a TPU's units, forward and backward: values inside Pallas kernels.

A TPU's registers hold 8 sublanes of 128 lanes. The channels of all heads lie side by side on the lanes, and moving a
head of 16 or 32 channels elsewhere costs more than computing with it. So heads stay where they are, and products of
single heads come from masks: a copy of q in which all but one head's channels are zero, times k with all channels,
gives that head's logits. Copies of q for one half of the heads are stacked on the sublanes of one operand, copies of k
on those of the other, and one product gives the logits of all heads:

    rows (class of queries, query), columns (class of keys, key), head = class of queries * classes of keys + class of keys

The classes of keys fill the 128 lanes of the logits, which would else be empty but for the length of the map.

Axes: length (padded to 8 sublanes), lanes, rows = classes of queries * length, columns = classes of keys * length.
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
MASKED = -1e30  # the logit of a position that is not there

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
    def key_classes(self) -> int:
        """As many as fit on the lanes of the logits."""
        return min(self.heads, max(1, LANES // self.length))

    @property
    def query_classes(self) -> int:
        """What is left; a few pairs of classes may be no head, whose logits nothing reads."""
        return -(-self.heads // self.key_classes)

    @property
    def rows(self) -> int:
        """Sublanes of the logits."""
        return self.query_classes * self.length

    @property
    def columns(self) -> int:
        """Lanes of the logits."""
        return self.key_classes * self.length

    def query_lanes(self, query_class: int) -> Ranges:
        """The lanes of a class of queries: its heads are neighbours."""
        first = query_class * self.key_classes
        return [(first * self.head_dim, min(first + self.key_classes, self.heads) * self.head_dim)]

    def key_lanes(self, key_class: int) -> Ranges:
        """The lanes of a class of keys: one head of each class of queries."""
        heads = range(key_class, self.heads, self.key_classes)
        return [(head * self.head_dim, (head + 1) * self.head_dim) for head in heads]

    def stack_queries(self, x: Channels) -> Float[Array, "rows lanes"]:
        """A copy for each class of queries, zero elsewhere."""
        return _stack(x, [self.query_lanes(i) for i in range(self.query_classes)])

    def stack_keys(self, x: Channels) -> Float[Array, "columns lanes"]:
        """A copy for each class of keys, zero elsewhere."""
        return _stack(x, [self.key_lanes(i) for i in range(self.key_classes)])

    def pick_queries(self, x: Float[Array, "rows lanes"]) -> Channels:
        """From each copy its own lanes."""
        return _pick(x, [self.query_lanes(i) for i in range(self.query_classes)])

    def pick_keys(self, x: Float[Array, "columns lanes"]) -> Channels:
        """From each copy its own lanes."""
        return _pick(x, [self.key_lanes(i) for i in range(self.key_classes)])

    def reduce(self, x: Logits, reduction: Callable[..., Array], neutral: float) -> list[Float[Array, "rows 1"]]:
        """Over the keys of each class, along the lanes."""
        if self.key_classes == 1:
            return [reduction(x, axis=1, keepdims=True)]
        return [
            reduction(jnp.where(_inside(x.shape, [self._columns_of(i)]), x, neutral), axis=1, keepdims=True)
            for i in range(self.key_classes)
        ]

    def spread_over_keys(self, numbers: Sequence[Float[Array, "rows 1"]]) -> Float[Array, "rows _"]:
        """One number for each class of keys to all its columns."""
        return _spread(numbers, [[self._columns_of(i)] for i in range(self.key_classes)], self.columns)

    def spread_over_lanes(self, numbers: Sequence[Float[Array, "rows 1"]], lanes: int) -> Float[Array, "rows _"]:
        """One number for each class of keys to the channels of its heads."""
        return _spread(numbers, [self.key_lanes(i) for i in range(self.key_classes)], lanes)

    def _columns_of(self, key_class: int) -> tuple[int, int]:
        return key_class * self.length, (key_class + 1) * self.length


def _inside(shape: tuple[int, ...], ranges: Ranges) -> Bool[Array, "_ _"]:
    """Which lanes lie in one of the ranges."""
    lane = jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    return functools.reduce(jnp.logical_or, [(lane >= start) & (lane < stop) for start, stop in ranges])


def _stack(x: Array, classes: list[Ranges]) -> Array:
    return jnp.concatenate([jnp.where(_inside(x.shape, ranges), x, 0) for ranges in classes], axis=0)


def _pick(x: Array, classes: list[Ranges]) -> Array:
    parts = jnp.split(x, len(classes), axis=0)
    picked = parts[0]
    for part, ranges in zip(parts[1:], classes[1:], strict=True):
        picked = jnp.where(_inside(part.shape, ranges), part, picked)
    return picked


def _spread(numbers: Sequence[Array], classes: list[Ranges], lanes: int) -> Array:
    shape = (numbers[0].shape[0], lanes)
    spread = jnp.broadcast_to(numbers[0], shape)
    for number, ranges in zip(numbers[1:], classes[1:], strict=True):
        spread = jnp.where(_inside(shape, ranges), number, spread)
    return spread


def decay_logits(
    stack: HeadStack, query_class: int, log_rates: Sequence[float], width: int | None, valid: int
) -> Float[Array, "length columns"]:
    """log(gamma) times the distance for one class of queries, `MASKED` for keys that are padding.

    Args:
        stack: how heads are stacked.
        query_class: which rows.
        log_rates: log(gamma) of each head.
        width: of a row of a map whose tokens are all attended to, padded: the distance is Manhattan's.
            None along an axis: it is that of the indices.
        valid: the keys that are no padding: of the axis, or of each row of the map.
    """
    shape = (stack.length, stack.columns)
    query = jax.lax.broadcasted_iota(jnp.int32, shape, 0).astype(jnp.float32)
    column = jax.lax.broadcasted_iota(jnp.int32, shape, 1).astype(jnp.float32)
    key_class = _quotient(column, stack.length)
    key = column - key_class * stack.length
    if width is None:
        distance, position = jnp.abs(query - key), key
    else:
        query_row, key_row = _quotient(query, width), _quotient(key, width)
        query_column, position = query - query_row * width, key - key_row * width
        distance = jnp.abs(query_row - key_row) + jnp.abs(query_column - position)
    rate = jnp.zeros(shape, jnp.float32)
    first = query_class * stack.key_classes
    for i, log_rate in enumerate(log_rates[first : first + stack.key_classes]):
        rate = jnp.where(key_class == i, log_rate, rate)
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
    """softmax(q k^T + decay) v of every head, normalised after the product with v.

    Args:
        stack: how heads are stacked.
        q: float32, rotated.
        k: float32, rotated and scaled. Padding is finite.
        v: float32. Padding is finite.
        decay: see `decay_logits`.
        dtype: operands of the products.
    """
    weights, sums = _weights(stack, stack.stack_queries(q).astype(dtype), stack.stack_keys(k).astype(dtype), decay)
    weighted = _product(weights.astype(dtype), stack.stack_keys(v).astype(dtype), (1, 0))
    return stack.pick_queries(weighted * stack.spread_over_lanes([1 / total for total in sums], q.shape[1]))


def attend_backward(
    stack: HeadStack, q: Channels, k: Channels, v: Channels, dy: Channels, decay: Logits, dtype: jnp.dtype
) -> tuple[Channels, Channels, Channels]:
    """Gradients of `attend` for q, k and v from that of its result, the weights computed again.

    Queries that are padding have a gradient of zero in `dy`, keys that are padding get one.
    """
    stacked_q, stacked_k = stack.stack_queries(q).astype(dtype), stack.stack_keys(k).astype(dtype)
    stacked_v, stacked_dy = stack.stack_keys(v).astype(dtype), stack.stack_queries(dy).astype(dtype)
    weights, sums = _weights(stack, stacked_q, stacked_k, decay)
    weights = weights * stack.spread_over_keys([1 / total for total in sums])
    dv = stack.pick_keys(_product(weights.astype(dtype), stacked_dy, (0, 0)))
    dweights = _product(stacked_dy, stacked_v, (1, 1))
    along_weights = stack.spread_over_keys(stack.reduce(weights * dweights, jnp.sum, 0.0))
    dlogits = (weights * (dweights - along_weights)).astype(dtype)
    dq = stack.pick_queries(_product(dlogits, stacked_k, (1, 0)))
    dk = stack.pick_keys(_product(dlogits, stacked_q, (0, 0)))
    return dq, dk, dv


def _weights(stack: HeadStack, q: Array, k: Array, decay: Logits) -> tuple[Logits, list[Float[Array, "rows 1"]]]:
    """Of stacked heads: exponentials, not normalised, and their sums."""
    logits = _product(q, k, (1, 1)) + decay
    weights = jnp.exp(logits - stack.spread_over_keys(stack.reduce(logits, jnp.max, MASKED)))
    return weights, stack.reduce(weights, jnp.sum, 0.0)
