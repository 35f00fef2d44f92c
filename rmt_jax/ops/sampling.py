"""A random sample of boxes for a loss: a fixed number of them, some objects and the rest background."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Int, Key

from rmt_jax.ops.assignment import Assignment

# (key, who may be chosen [n], how many) -> priorities [n], positive. Those with the highest are taken.
Choice = Callable[[Key[Array, ""], Bool[Array, " n"], Int[Array, ""]], Int[Array, " n"]]


class Samples(NamedTuple):
    """Positive boxes first, then negative ones, then empty slots."""

    box: Int[Array, " slots"]  # its index; that of any where the slot is empty
    positive: Bool[Array, " slots"]
    valid: Bool[Array, " slots"]


def at_random(key: Key[Array, ""], candidates: Bool[Array, " n"], count: Int[Array, ""]) -> Int[Array, " n"]:
    """Every choice equally likely: the first of all candidates in a random order."""
    del count
    return lax.shift_right_logical(jax.random.bits(key, candidates.shape, jnp.uint32), jnp.uint32(1)).astype(jnp.int32)


def evenly(key: Key[Array, ""], candidates: Bool[Array, " n"], count: Int[Array, ""]) -> Int[Array, " n"]:
    """No chance at all: of c candidates in their order the numbers floor(i * c / count), for comparisons."""
    del key
    total, rank = candidates.sum(), jnp.cumsum(candidates) - 1
    first = -(-rank * count // total)  # the smallest i with floor(i * total / count) >= rank
    chosen = candidates & ((first * total // count == rank) | (total <= count))
    behind = len(candidates) - jnp.arange(len(candidates), dtype=jnp.int32)
    return jnp.where(chosen, behind + len(candidates), behind)


def sample(
    key: Key[Array, ""], assignment: Assignment, slots: int, positive_share: float, choice: Choice = at_random
) -> Samples:
    """Of one picture's boxes int(slots * positive_share) positive ones, or all, and negative ones in the other slots.

    Slots that neither fill are empty. Positive boxes are in the first int(slots * positive_share) slots only.

    Args:
        key: decides which.
        assignment: what the boxes are; ignored ones are not taken.
        slots: the number of samples.
        positive_share: the largest share of positive ones.
        choice: which of the boxes; `at_random` for training.

    Source: mmdet `RandomSampler`.
    """
    positive_key, negative_key = jax.random.split(key)
    most = int(slots * positive_share)
    positives = jnp.minimum(assignment.positive.sum(), most)
    negatives = jnp.minimum(assignment.negative.sum(), slots - positives)
    chosen_positive = _choose(choice, positive_key, assignment.positive, positives, most)
    chosen_negative = _choose(choice, negative_key, assignment.negative, negatives, slots)
    slot = jnp.arange(slots, dtype=jnp.int32)
    positive = slot < positives
    # Negative boxes follow the last positive one: their list, moved by as many slots.
    moved = jnp.roll(chosen_negative, positives)
    box = jnp.where(positive, jnp.pad(chosen_positive, (0, slots - len(chosen_positive))), moved)
    return Samples(box, positive, slot < positives + negatives)


def _choose(
    choice: Choice, key: Key[Array, ""], candidates: Bool[Array, " n"], count: Int[Array, ""], slots: int
) -> Int[Array, " slots"]:
    """Indices of up to `slots` candidates by priority, and of others after them."""
    priority = jnp.where(candidates, choice(key, candidates, count), -1)
    index = lax.top_k(priority, min(slots, len(candidates)))[1]
    return jnp.pad(index, (0, slots - len(index)))
