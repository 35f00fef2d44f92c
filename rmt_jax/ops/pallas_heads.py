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
    def key_classes(self) -> int:
        """As few as leave no more classes of queries than fit on the lanes of the logits."""
        return -(-self.heads // max(1, LANES // self.length))

    @property
    def query_classes(self) -> int:
        """The rest; a few pairs of classes may be no head, whose logits nothing reads."""
        return -(-self.heads // self.key_classes)

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
        return [
            [(first * self.head_dim, min(first + self.key_classes, self.heads) * self.head_dim)]
            for first in range(0, self.heads, self.key_classes)
        ]

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


def product(x: Array, y: Array, contract: tuple[int, int]) -> Array:
    """A matrix product with sums in float32, over one axis of each; float32 operands are not rounded."""
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    dimensions = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(x, y, dimensions, precision=precision, preferred_element_type=jnp.float32)


@dataclasses.dataclass(frozen=True)
class Attention:
    """One group of heads along one axis.

    Attributes:
        stack: how heads are stacked.
        q: float32, rotated.
        k: float32, rotated and scaled. Padding is finite, here and in v.
        v: float32.
        decay: see `decay_logits`.
    """

    stack: HeadStack
    q: Channels
    k: Channels
    v: Channels
    decay: Logits


def attend(attentions: Sequence[Attention], dtype: jnp.dtype) -> list[Channels]:
    """softmax(q k^T + decay) v of every head; products have operands of type `dtype`.

    Step by step for all, not one after the other: while the matrix unit works on one, the others have theirs to do.
    """
    weights = _weights([_operands(a, dtype) for a in attentions], attentions)
    values = [_stack(a.v, a.stack.key_lanes, dtype) for a in attentions]
    weighted = [product(w.astype(dtype), v, (0, 0)) for w, v in zip(weights, values, strict=True)]
    return [_pick(x, a.stack.query_lanes) for x, a in zip(weighted, attentions, strict=True)]


def attend_backward(
    attentions: Sequence[Attention], gradients: Sequence[Channels], dtype: jnp.dtype
) -> list[tuple[Channels, Channels, Channels]]:
    """Gradients of `attend` for q, k and v from those of its results, the weights computed again.

    Queries that are padding have a gradient of zero, keys that are padding get one.
    """
    operands = [_operands(a, dtype) for a in attentions]
    stacks = [a.stack for a in attentions]
    values = [_stack(a.v, a.stack.key_lanes, dtype) for a in attentions]
    results = [_stack(dy, stack.query_lanes, dtype) for dy, stack in zip(gradients, stacks, strict=True)]
    dweights = [product(v, dy, (1, 1)) for v, dy in zip(values, results, strict=True)]
    weights = _weights(operands, attentions)
    dv = [product(w.astype(dtype), dy, (1, 0)) for w, dy in zip(weights, results, strict=True)]
    dlogits = [
        (w * (dw - stack.over_keys(w * dw, jnp.sum))).astype(dtype)
        for w, dw, stack in zip(weights, dweights, stacks, strict=True)
    ]
    dq = [product(d, k, (0, 0)) for d, (k, _) in zip(dlogits, operands, strict=True)]
    dk = [product(d, q, (1, 0)) for d, (_, q) in zip(dlogits, operands, strict=True)]
    return [
        (_pick(q, stack.query_lanes), _pick(k, stack.key_lanes), _pick(v, stack.key_lanes))
        for q, k, v, stack in zip(dq, dk, dv, stacks, strict=True)
    ]


def _operands(
    attention: Attention, dtype: jnp.dtype
) -> tuple[Float[Array, "rows lanes"], Float[Array, "columns lanes"]]:
    """Keys and queries, stacked."""
    stack = attention.stack
    return _stack(attention.k, stack.key_lanes, dtype), _stack(attention.q, stack.query_lanes, dtype)


def _weights(operands: Sequence[tuple[Array, Array]], attentions: Sequence[Attention]) -> list[Logits]:
    """The softmax over the keys of each class.

    Normalised before the product with v, unlike `ops.retention`: there it saves memory traffic, here sums are where
    weights are, and not where values are.
    """
    stacks = [a.stack for a in attentions]
    logits = [product(k, q, (1, 1)) for k, q in operands]
    logits = [x + a.decay for x, a in zip(logits, attentions, strict=True)]
    weights = [jnp.exp(x - stack.over_keys(x, jnp.max)) for x, stack in zip(logits, stacks, strict=True)]
    return [x * (1 / stack.over_keys(x, jnp.sum)) for x, stack in zip(weights, stacks, strict=True)]
