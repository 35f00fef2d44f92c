"""The primitive against its specification, and both arrangements of it against loops over positions."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmt_jax.ops import (
    axis_decay,
    decomposed_retention,
    full_retention,
    log_decay_rates,
    manhattan_decay,
    reference,
    retention,
)
from rmt_jax.ops.retention import MOST_QUERIES
from tests.ops import naive

Arrays = tuple[jax.Array, jax.Array, jax.Array, jax.Array]

NAMES = ("q", "k", "v", "decay")


def arguments(queries: int, length: int, dim: int, value_dim: int, *, scale: float = 1.0, seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    normal = [rng.standard_normal(shape).astype(np.float32) for shape in ((queries, dim), (length, dim))]
    q, k = (np.float32(scale**0.5) * x for x in normal)
    v = rng.standard_normal((length, value_dim)).astype(np.float32)
    decay = -5 * rng.random((queries, length), np.float32)
    return jnp.asarray(q), jnp.asarray(k), jnp.asarray(v), jnp.asarray(decay)


def both(*args: jax.Array) -> tuple[jax.Array, jax.Array]:
    return retention(*args), reference.retention(*args)


both_jit = jax.jit(both)


def images(height: int, width: int, heads: int = 2, dim: int = 4, seed: int = 0) -> list[jax.Array]:
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.standard_normal((height, width, heads, dim)).astype(np.float32)) for _ in range(3)]


@given(
    queries=st.integers(1, 9),
    length=st.integers(1, 9),
    dim=st.integers(1, 9),
    value_dim=st.integers(1, 9),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=12, deadline=None, derandomize=True)
def test_equals_the_specification(queries: int, length: int, dim: int, value_dim: int, seed: int) -> None:
    ours, expected = both_jit(*arguments(queries, length, dim, value_dim, seed=seed))
    # Logits of about dim: their rounding is multiplied by v.
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=5e-6)


def test_a_single_key_returns_its_value() -> None:
    q, k, v, decay = arguments(queries=3, length=1, dim=4, value_dim=5)
    np.testing.assert_allclose(retention(q, k, v, decay), np.repeat(v, 3, axis=0), rtol=1e-6)


@pytest.mark.parametrize("shift", [-1e4, 0.0])
def test_large_logits_neither_overflow_nor_vanish(shift: float) -> None:
    q, k, v, decay = arguments(6, 7, 8, 4, scale=300.0)
    decay += shift
    logits = np.asarray(q @ k.T + decay)
    with np.errstate(over="ignore"):
        naive_sums = np.exp(logits).sum(axis=1)
    assert np.isinf(naive_sums).any() if shift == 0 else (naive_sums == 0).any()  # the case is one that needs care
    ours, expected = both_jit(q, k, v, decay)
    assert np.isfinite(ours).all()
    # A float32 logit of 1e4 is known to 5e-4 only, and that error goes into the exponential.
    np.testing.assert_allclose(ours, expected, atol=5e-3 if shift else 5e-4)


def test_strong_decay_keeps_every_position_to_itself() -> None:
    q, k, v, _ = arguments(5, 5, 4, 3)
    decay = jnp.where(jnp.eye(5, dtype=bool), jnp.float32(0), jnp.float32(-1e9))
    np.testing.assert_array_equal(retention(q, k, v, decay), v)


def test_bfloat16_stays_within_its_rounding() -> None:
    q, k, v, decay = arguments(16, 16, 8, 4)
    q, k, v = (x.astype(jnp.bfloat16) for x in (q, k, v))
    ours, expected = both_jit(q, k, v, decay)
    assert ours.dtype == jnp.bfloat16
    # A bfloat16 has 8 bits, so rounds by 2**-9: once the weights, once our output, once the specification's.
    bound = 3 * 2.0**-9 * float(jnp.abs(v).max())
    assert float(jnp.abs(ours.astype(jnp.float32) - expected.astype(jnp.float32)).max()) <= bound


def test_softmax_of_bfloat16_inputs_sums_in_float32() -> None:
    """257 equal weights: a bfloat16 sum would stop at 256."""
    zeros = jnp.zeros((257, 2), jnp.bfloat16)
    ones = jnp.ones((257, 1), jnp.bfloat16)
    ours = retention(zeros, zeros, ones, jnp.zeros((257, 257)))
    np.testing.assert_array_equal(ours.astype(jnp.float32), 1.0)


def test_output_has_the_type_of_the_values() -> None:
    q, k, v, decay = arguments(3, 3, 4, 2)
    assert retention(q, k, v.astype(jnp.bfloat16), decay).dtype == jnp.bfloat16
    assert retention(q.astype(jnp.bfloat16), k.astype(jnp.bfloat16), v, decay).dtype == jnp.float32


@pytest.mark.parametrize("queries", [5, MOST_QUERIES + 1])
def test_gradients_equal_the_specifications(queries: int) -> None:
    """Of few queries and of many, with a key that is hidden."""
    q, k, v, decay = arguments(queries, 7, 6, 3, scale=2.0)
    decay = decay.at[:, 2].set(-jnp.inf)
    weights = np.random.default_rng(9).standard_normal((queries, 3)).astype(np.float32)

    def gradients(f: Callable[..., jax.Array]) -> Arrays:
        found: Arrays = jax.jit(jax.grad(lambda *a: (f(*a) * weights).sum(), (0, 1, 2, 3)))(q, k, v, decay)
        return found

    for name, ours, expected in zip(NAMES, gradients(retention), gradients(reference.retention), strict=True):
        assert np.abs(expected).max() > 1e-2
        atol = 1e-5 * np.abs(expected).max()
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=atol, err_msg=name)


def test_gradients_have_the_types_of_their_arguments() -> None:
    q, k, v, decay = arguments(4, 5, 6, 3)
    q, k = q.astype(jnp.bfloat16), k.astype(jnp.bfloat16)
    found = jax.grad(lambda *a: retention(*a).sum(), (0, 1, 2, 3))(q, k, v, decay)
    assert [x.dtype for x in found] == [x.dtype for x in (q, k, v, decay)]


def test_gradient_is_finite_for_large_logits() -> None:
    args = arguments(6, 7, 8, 4, scale=300.0)
    grads = jax.jit(jax.grad(lambda *a: retention(*a).sum(), (0, 1, 2, 3)))(*args)
    assert all(np.isfinite(g).all() for g in grads)


def test_vmap_is_a_loop() -> None:
    args = [np.stack(parts) for parts in zip(*(arguments(4, 5, 6, 3, seed=s) for s in range(3)), strict=True)]
    ours = jax.jit(jax.vmap(retention))(*args)
    expected = [both_jit(*(x[i] for x in args))[1] for i in range(3)]
    np.testing.assert_allclose(ours, np.stack(expected), rtol=1e-5, atol=5e-6)


SIZES = [(3, 4), (4, 3), (1, 5), (5, 1), (1, 1)]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_decomposed_is_the_loop_along_width_then_height(height: int, width: int) -> None:
    batch = [images(height, width, seed=seed) for seed in range(2)]
    rates = log_decay_rates(2, 2, 4)
    q, k, v = (jnp.stack(maps) for maps in zip(*batch, strict=True))
    ours = jax.jit(decomposed_retention)(q, k, v, axis_decay(width, rates), axis_decay(height, rates))
    expected = np.stack([naive.decomposed(*of_one, rates) for of_one in batch])
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=3e-6)


def test_the_order_of_the_axes_matters() -> None:
    """So the test above would notice height first."""
    q, k, v = images(3, 4)
    rates = log_decay_rates(2, 2, 4)
    height_first = naive.along_width(q, k, naive.along_height(q, k, v, rates), rates)
    assert np.abs(height_first - naive.decomposed(q, k, v, rates)).max() > 0.1


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_full_is_the_loop_over_all_tokens(height: int, width: int) -> None:
    q, k, v = images(height, width)
    rates = log_decay_rates(2, 2, 4)
    ours = jax.jit(full_retention)(q, k, v, manhattan_decay(height, width, rates))
    np.testing.assert_allclose(ours, naive.full(q, k, v, rates), rtol=1e-5, atol=3e-6)


def test_full_and_decomposed_differ() -> None:
    q, k, v = images(3, 4)
    rates = log_decay_rates(2, 2, 4)
    assert np.abs(naive.full(q, k, v, rates) - naive.decomposed(q, k, v, rates)).max() > 0.1


def test_heads_do_not_mix() -> None:
    q, k, v = (x[None] for x in images(3, 4))
    rates = log_decay_rates(2, 2, 4)
    decays = axis_decay(4, rates), axis_decay(3, rates)
    run = jax.jit(decomposed_retention)
    changed = v.at[..., 1, :].add(1)
    np.testing.assert_array_equal(run(q, k, changed, *decays)[..., 0, :], run(q, k, v, *decays)[..., 0, :])
