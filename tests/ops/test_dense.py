"""Linear layers and LayerNorm, whose backward passes are written by hand, against what jax derives itself."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmt_jax.ops import formulations, layer_norm, linear

EPSILON = 1e-3


def plain_linear(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    return jnp.einsum("...i,ij->...j", x, kernel) + bias


def plain_layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    x = x.astype(jnp.float32)
    return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + EPSILON) * scale + bias


CASES: dict[str, tuple[Callable[..., jax.Array], Callable[..., jax.Array], list[tuple[int, ...]]]] = {
    "linear": (linear, plain_linear, [(2, 3, 5, 6), (6, 4), (4,)]),
    "linear of a vector": (linear, plain_linear, [(6,), (6, 4), (4,)]),
    "LayerNorm": (lambda *args: layer_norm(*args, EPSILON), plain_layer_norm, [(2, 3, 5, 6), (6,), (6,)]),
}


def normal(shapes: list[tuple[int, ...]]) -> list[jax.Array]:
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]


@pytest.mark.parametrize("sums", ["by_parts", "reduction"])
@pytest.mark.parametrize("case", CASES)
def test_results_and_gradients_are_the_plain_ones(case: str, sums: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(formulations.ENVIRONMENT_VARIABLE, f"sums={sums}")
    ours, plain, shapes = CASES[case]
    arguments = normal(shapes)
    (y, pull), (expected, expected_pull) = (jax.vjp(function, *arguments) for function in (ours, plain))
    np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-6)
    dy = normal([y.shape])[0]
    for gradient, other in zip(pull(dy), expected_pull(dy), strict=True):
        np.testing.assert_allclose(gradient, other, rtol=1e-5, atol=1e-5 * np.abs(other).max())


def test_large_means_leave_the_variance_exact() -> None:
    """E[x^2] - E[x]^2 would be off by several per cent here."""
    x = normal([(4, 64)])[0]
    ones, zeros = jnp.ones(64), jnp.zeros(64)
    shifted = layer_norm(x + 1000, ones, zeros, EPSILON)
    np.testing.assert_allclose(shifted, layer_norm(x, ones, zeros, EPSILON), atol=3e-4)  # of x + 1000 itself: 6e-5


def test_layer_norm_of_bfloat16_is_float32_and_its_gradient_bfloat16() -> None:
    x = normal([(4, 6)])[0].astype(jnp.bfloat16)
    y, pull = jax.vjp(lambda x: layer_norm(x, jnp.ones(6), jnp.zeros(6), EPSILON), x)
    assert y.dtype == jnp.float32
    assert pull(y)[0].dtype == jnp.bfloat16
