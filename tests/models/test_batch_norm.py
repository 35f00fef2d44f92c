"""BatchNorm as PyTorch keeps it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from rmt_jax.models.layers import BatchNorm


def batch_norm(features: int = 1, dtype: DTypeLike = jnp.float32) -> BatchNorm:
    return BatchNorm(features, dtype=dtype, rngs=nnx.Rngs(0))


def column(*values: float) -> jax.Array:
    return jnp.array(values, jnp.float32).reshape(-1, 1, 1, 1)


def test_output_by_hand() -> None:
    """Mean 3, biased variance 2/3 * 4 = 8/3."""
    norm = batch_norm()
    norm.scale[...] = jnp.array([2.0])
    norm.bias[...] = jnp.array([10.0])
    expected = 10 + 2 * np.array([-2, 0, 2]) / np.sqrt(8 / 3 + 1e-5)
    np.testing.assert_allclose(norm(column(1, 3, 5)).ravel(), expected, rtol=1e-6)


def test_epsilon_is_1e_5() -> None:
    """Values so close that epsilon is half of what is under the root."""
    spread = np.float32(np.sqrt(1e-5))
    y = batch_norm()(column(-spread, spread)).ravel()
    np.testing.assert_allclose(y, [-np.sqrt(0.5), np.sqrt(0.5)], rtol=1e-5)


def test_running_statistics_by_hand() -> None:
    """A tenth of the way from 0 to the mean, 3, and from 1 to the unbiased variance, 4."""
    norm = batch_norm()
    norm(column(1, 3, 5))
    np.testing.assert_allclose(norm.mean[...], [0.3], rtol=1e-6)
    np.testing.assert_allclose(norm.var[...], [1 + 0.1 * (4 - 1)], rtol=1e-6)
    norm(column(1, 3, 5))
    np.testing.assert_allclose(norm.mean[...], [0.3 + 0.1 * 2.7], rtol=1e-6)


def test_all_axes_but_the_channels_count() -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32) * 3 + 7
    norm = batch_norm(5)
    quick_norm(norm, jnp.asarray(x))
    rows = x.reshape(-1, 5).astype(np.float64)
    np.testing.assert_allclose(norm.mean[...], 0.1 * rows.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * rows.var(axis=0, ddof=1), rtol=1e-5)


def quick_norm(norm: BatchNorm, x: jax.Array) -> jax.Array:
    """One compiled call that updates the module in place."""
    graph, state = nnx.split(norm)

    def run(state: nnx.State, x: jax.Array) -> tuple[jax.Array, nnx.State]:
        module = nnx.merge(graph, state)
        return module(x), nnx.state(module)

    y, new = jax.jit(run)(state, x)
    nnx.update(norm, new)
    return y


def test_large_mean_keeps_its_variance() -> None:
    """E[x^2] - E[x]^2 would lose it: the mean is 1e4 times the deviation."""
    x = 1e3 + 0.1 * np.random.default_rng(0).standard_normal((64, 2, 2, 1))
    y = quick_norm(batch_norm(), jnp.asarray(x, jnp.float32))
    assert abs(float(y.std()) - 1) < 2e-3  # float32 inputs at 1e3 are known to 6e-5 / 0.1


def test_evaluation_uses_the_running_statistics_and_leaves_them() -> None:
    norm = batch_norm()
    norm.mean[...] = jnp.array([2.0])
    norm.var[...] = jnp.array([4.0])
    norm.eval()
    np.testing.assert_allclose(norm(column(2, 4)).ravel(), np.array([0, 2]) / np.sqrt(4 + 1e-5), rtol=1e-6)
    np.testing.assert_array_equal((norm.mean[...], norm.var[...]), ([2], [4]))


def test_one_value_for_each_channel_is_an_error_in_training_only() -> None:
    norm = batch_norm()
    with pytest.raises(ValueError, match=r"\(1, 1, 1, 1\), one value for each channel.*model\.eval\(\)"):
        norm(column(3))
    norm.eval()
    assert norm(column(3)).shape == (1, 1, 1, 1)


def test_gradient_flows_through_the_batch_statistics() -> None:
    """The sum of the normalised values is always zero, so its gradient is too."""
    norm = batch_norm()
    norm.scale[...] = jnp.array([3.0])
    weights = column(1, 2, 4)

    def loss(x: jax.Array, weights: jax.Array) -> jax.Array:
        graph, state = nnx.split(norm)
        return (nnx.merge(graph, state, copy=True)(x) * weights).sum()

    gradient = jax.jit(jax.grad(loss))
    x = column(1, 3, 5)
    np.testing.assert_allclose(gradient(x, column(1, 1, 1)).ravel(), 0, atol=1e-6)
    # d/dx of scale * (x - mean) / sqrt(var + eps), worked out: s / sigma * (w - mean(w) - y * mean(w * y)).
    sigma = np.sqrt(8 / 3 + 1e-5)
    w, y = np.array([1, 2, 4]), np.array([-2, 0, 2]) / sigma
    expected = 3 / sigma * (w - w.mean() - y * (w * y).mean())
    np.testing.assert_allclose(gradient(x, weights).ravel(), expected, rtol=1e-5, atol=1e-6)


def test_bfloat16_maps_keep_float32_statistics() -> None:
    """A bfloat16 mean of 257 would be 256 or 258, and its variance lost."""
    x = jnp.array([256, 258] * 8, jnp.bfloat16).reshape(16, 1, 1, 1)
    norm = batch_norm(dtype=jnp.bfloat16)
    y = norm(x)
    assert (y.dtype, norm.mean[...].dtype, norm.var[...].dtype) == (jnp.bfloat16, jnp.float32, jnp.float32)
    np.testing.assert_allclose(norm.mean[...], [25.7], rtol=1e-6)
    np.testing.assert_allclose(norm.var[...], [0.9 + 0.1 * 16 / 15], rtol=1e-6)
    np.testing.assert_array_equal(np.unique(y.astype(jnp.float32)), [-1, 1])


def test_statistics_are_those_of_the_global_batch_over_eight_devices() -> None:
    """Each device's share has another mean and hardly any variance of its own."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((16, 2, 2, 3)) * 0.1 + np.arange(16)[:, None, None, None], jnp.float32)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    alone, together = batch_norm(3), batch_norm(3)
    expected, ours = quick_norm(alone, x), quick_norm(together, sharded)
    assert len(ours.sharding.device_set) == 8
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(together.mean[...], alone.mean[...], rtol=1e-6)
    np.testing.assert_allclose(together.var[...], alone.var[...], rtol=1e-6)
    assert float(alone.var[...].min()) > 2  # the global variance, about 22, weighted by a tenth
