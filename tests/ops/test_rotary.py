"""Rotary phases: flat index, pairs of neighbouring channels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmt_jax.ops import formulations, pairs_to_halves, reference, rotary_angles, rotary_phase
from rmt_jax.ops import rotate as rotate_halves
from tests.ops import naive


def tokens(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def rotate(x: jax.Array, phase: jax.Array | np.ndarray) -> jax.Array:
    """With pairs side by side, as the specification has them."""
    turned = rotate_halves(pairs_to_halves(x, 1), np.asarray(phase))
    return jnp.stack(jnp.split(turned, 2, axis=-1), axis=-1).reshape(x.shape)


@pytest.mark.parametrize("halves", ["strides", "transpose"])
def test_halves_of_two_heads_by_hand(halves: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(formulations.ENVIRONMENT_VARIABLE, f"halves={halves}")
    np.testing.assert_array_equal(pairs_to_halves(jnp.arange(8.0)[None], 2), [[0, 2, 1, 3, 4, 6, 5, 7]])


def test_angles_of_six_channels_by_hand() -> None:
    np.testing.assert_allclose(rotary_angles(6), [1, 1e-2, 1e-4], rtol=1e-6)


def test_phase_is_the_angle_times_the_flat_index() -> None:
    phase = np.asarray(rotary_phase(2, 3, 4))
    np.testing.assert_array_equal(phase[..., 0], [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_allclose(phase[..., 1], 1e-4 * np.array([[0, 1, 2], [3, 4, 5]]), rtol=1e-6)


def test_vertical_phase_depends_on_the_width() -> None:
    """Upstream's behaviour: one row down is `width` steps."""
    assert rotary_phase(2, 3, 4)[1, 0, 0] == 3
    assert rotary_phase(2, 7, 4)[1, 0, 0] == 7


def test_quarter_turn_by_hand() -> None:
    x = jnp.array([[1.0, 2, 3, 4]])
    phase = jnp.array([[np.pi / 2, np.pi]])
    np.testing.assert_allclose(rotate(x, phase), [[-2, 1, -3, -4]], atol=1e-6)


def test_equals_the_specification() -> None:
    x, phase = tokens(5, 7, 3, 8), 300 * tokens(5, 7, 1, 4, seed=1)
    ours = jax.jit(lambda x: rotate(x, phase))(x)
    with jax.numpy_dtype_promotion("standard"):  # the specification multiplies complex by real numbers
        expected = jax.jit(reference.rotate)(x, phase)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize("dim", [2, 8])
def test_equals_the_loop_over_positions(dim: int) -> None:
    x = tokens(3, 4, 2, dim)
    ours = jax.jit(lambda x: rotate(x, rotary_phase(3, 4, dim)[:, :, None]))(x)
    # Phases up to 11 radians in float32 against float64.
    np.testing.assert_allclose(ours, naive.rotate(x), rtol=1e-5, atol=5e-6)


def test_norm_is_preserved() -> None:
    x = tokens(4, 4, 1, 6)
    y = rotate(x, rotary_phase(4, 4, 6)[:, :, None])
    np.testing.assert_allclose(np.linalg.norm(y, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-6)


def test_products_depend_on_the_difference_of_the_indices_only() -> None:
    q, k = tokens(8), tokens(8, seed=1)
    phase = rotary_phase(1, 40, 8)[0]
    turned_q, turned_k = rotate(jnp.tile(q, (40, 1)), phase), rotate(jnp.tile(k, (40, 1)), phase)
    products = np.asarray(turned_q @ turned_k.T)
    for difference in (0, 1, 17):
        same = np.diagonal(products, difference)
        np.testing.assert_allclose(same, same[0], atol=2e-5)  # phases up to 40 radians hold 5e-6
    assert abs(products[0, 1] - products[1, 0]) > 0.1  # and on its sign


def test_bfloat16_is_turned_in_float32() -> None:
    """At index 3001, a bfloat16 phase would be off by whole turns."""
    x, phase = tokens(1, 8), 3001 * jnp.asarray(rotary_angles(8))[None]
    half = x.astype(jnp.bfloat16)
    ours = rotate(half, phase)
    assert ours.dtype == jnp.bfloat16
    expected = rotate(half.astype(jnp.float32), phase)
    np.testing.assert_allclose(ours.astype(jnp.float32), expected, rtol=2.0**-8)
