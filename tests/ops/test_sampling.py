"""Samples: how many of which kind, and that every choice is equally likely. Upstream's are in tests/reference."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmt_jax.ops import Assignment, at_random, evenly, sample


def assignment(kinds: str) -> Assignment:
    """Of a string with + for objects, - for background and others for ignored boxes."""
    array = np.array(list(kinds))
    zeros = jnp.zeros(len(kinds), jnp.int32)
    return Assignment(zeros, jnp.asarray(array == "+"), jnp.asarray(array == "-"), zeros.astype(jnp.float32))


@pytest.mark.parametrize("choice", [at_random, evenly])
@pytest.mark.parametrize(
    ("kinds", "positives", "negatives"),
    [
        ("+" * 9 + "." * 5 + "-" * 20, 4, 4),  # of both to spare
        ("-" * 20 + "." * 5 + "+" * 2, 2, 6),  # negative ones in the place of positive ones
        ("+-" * 3 + "." * 30, 3, 3),  # slots that stay empty
        ("+" * 20 + "-", 4, 1),  # positive ones not in the place of negative ones
        ("." * 12, 0, 0),
        ("+.-", 1, 1),  # fewer boxes than slots
    ],
)
def test_numbers(choice: object, kinds: str, positives: int, negatives: int) -> None:
    found = sample(jax.random.key(0), assignment(kinds), 8, 0.5, choice)
    of = np.array(list(kinds))[found.box]
    np.testing.assert_array_equal(found.positive, np.arange(8) < positives)
    np.testing.assert_array_equal(found.valid, np.arange(8) < positives + negatives)
    assert "".join(of[found.valid]) == "+" * positives + "-" * negatives
    taken = np.asarray(found.box)[found.valid]
    assert len(set(taken.tolist())) == len(taken)


def test_all_choices_are_equally_likely() -> None:
    """Pairs of 3 positive boxes, and each of 5 negative ones, over 3000 draws: within five standard deviations."""
    kinds, draws = "-+.-+-+--", 3000
    draw = jax.jit(jax.vmap(functools.partial(sample, assignment=assignment(kinds), slots=4, positive_share=0.5)))
    found = draw(jax.random.split(jax.random.key(0), draws))
    assert found.valid.all()
    assert (found.positive == np.array([True, True, False, False])).all()
    counts = np.bincount(np.asarray(found.box).ravel(), minlength=len(kinds)) / draws
    for kind, share in (("+", 2 / 3), ("-", 2 / 5), (".", 0)):
        deviation = np.sqrt(share * (1 - share) / draws)
        np.testing.assert_allclose(counts[np.array(list(kinds)) == kind], share, atol=5 * deviation)
    pairs, of_pair = np.unique(np.sort(found.box[:, 2:], axis=1), axis=0, return_counts=True)
    assert len(pairs) == 10
    np.testing.assert_allclose(of_pair / draws, 0.1, atol=5 * np.sqrt(0.09 / draws))
