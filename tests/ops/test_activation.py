import jax
import jax.numpy as jnp
import numpy as np

from rmt_jax.ops import gelu, reference

X = jnp.linspace(-6, 6, 4001)


def test_gelu_is_exact() -> None:
    ours, expected = jax.jit(lambda x: (gelu(x), reference.gelu(x)))(X)
    # 1 + erf(x) cancels for negative x: absolute, not relative, accuracy there.
    np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-6)


def test_tanh_gelu_would_be_noticed() -> None:
    assert np.abs(jax.nn.gelu(X, approximate=True) - reference.gelu(X)).max() > 1e-4


def test_gelu_at_known_points() -> None:
    """x times the share of a normal distribution below x: 0.841345 at 1, 0.022750 at -2."""
    np.testing.assert_allclose(gelu(jnp.array([0.0, 1, -2])), [0, 0.841345, -0.0455003], rtol=1e-5)


def test_gradient_of_gelu() -> None:
    ours, expected = jax.jit(lambda x: tuple(jax.vmap(jax.grad(f))(x) for f in (gelu, reference.gelu)))(X)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=2e-6)


def test_gelu_keeps_bfloat16() -> None:
    half = X.astype(jnp.bfloat16)
    ours = gelu(half)
    assert ours.dtype == jnp.bfloat16
    expected = reference.gelu(half.astype(jnp.float32))
    # Three products and a sum of 1 and erf, each rounded to 8 bits; the sum cancels for negative x.
    np.testing.assert_allclose(ours.astype(jnp.float32), expected, rtol=2.0**-6, atol=2.0**-6)
