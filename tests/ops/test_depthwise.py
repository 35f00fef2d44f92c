"""Depthwise convolution and its hand-written backward pass against XLA's grouped convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from rmt_jax.ops import depthwise_conv2d, formulations, reference
from tests.ops import naive

Gradients = tuple[jax.Array, jax.Array]

KERNELS = [(1, 1), (3, 3), (5, 5), (7, 7), (3, 7), (5, 1)]
MAPS = [(1, 1), (2, 3), (9, 5)]  # smaller than most kernels, and larger in one direction


def arrays(size: tuple[int, int], kernel: tuple[int, int], batch: int = 2, channels: int = 3) -> list[jax.Array]:
    """A map, a kernel and a cotangent."""
    rng = np.random.default_rng(0)
    shapes = (batch, *size, channels), (*kernel, 1, channels), (batch, *size, channels)
    return [jnp.asarray(rng.standard_normal(shape).astype(np.float32)) for shape in shapes]


@pytest.fixture(autouse=True, params=["shifts", "convolution"])
def formulation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test of this file is of both."""
    monkeypatch.setenv(formulations.ENVIRONMENT_VARIABLE, f"depthwise={request.param}")
    return request.param


def forward_and_backward(f, x: jax.Array, kernel: jax.Array, dy: jax.Array) -> tuple[jax.Array, Gradients]:
    y, vjp = jax.vjp(f, x, kernel)
    return y, vjp(dy)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("size", MAPS)
def test_output_and_gradients_equal_the_specifications(size: tuple[int, int], kernel: tuple[int, int]) -> None:
    x, weights, dy = arrays(size, kernel)

    @jax.jit
    def both(*args: jax.Array) -> list[tuple[jax.Array, Gradients]]:
        return [forward_and_backward(f, *args) for f in (depthwise_conv2d, reference.depthwise_conv2d)]

    ours, expected = both(x, weights, dy)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=2e-6 * np.abs(other).max())


def test_equals_the_loop_over_positions() -> None:
    x, weights, _ = arrays((4, 5), (3, 5))
    ours = jax.jit(depthwise_conv2d)(x, weights)
    np.testing.assert_allclose(ours, naive.depthwise_conv2d(x, weights), rtol=1e-5, atol=5e-6)


def test_channels_do_not_mix() -> None:
    x, weights, _ = arrays((4, 4), (3, 3))
    changed = x.at[..., 1].add(1)
    run = jax.jit(depthwise_conv2d)
    difference = np.abs(run(changed, weights) - run(x, weights)).max(axis=(0, 1, 2))
    assert ((difference > 0) == [False, True, False]).all()


def test_bfloat16_maps_are_summed_in_float32(formulation: str) -> None:
    x, weights, dy = arrays((6, 5), (5, 5))
    half, half_dy = x.astype(jnp.bfloat16), dy.astype(jnp.bfloat16)
    # A float32 kernel, as the models have it; a convolution takes one of the map's type.
    weights = weights.astype(jnp.bfloat16).astype(jnp.float32) if formulation == "convolution" else weights
    y, (dx, dkernel) = jax.jit(lambda *a: forward_and_backward(depthwise_conv2d, *a))(half, weights, half_dy)
    expected, (expected_dx, expected_dkernel) = jax.jit(
        lambda *a: forward_and_backward(reference.depthwise_conv2d, *a)
    )(half.astype(jnp.float32), weights, half_dy.astype(jnp.float32))
    assert (y.dtype, dx.dtype, dkernel.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    # Only the result is rounded, to 8 bits; sums of bfloat16 would be several times worse.
    np.testing.assert_allclose(y.astype(jnp.float32), expected, rtol=2.0**-8, atol=1e-5)
    np.testing.assert_allclose(dx.astype(jnp.float32), expected_dx, rtol=2.0**-8, atol=1e-5)
    # A convolution's weight gradient is of the map's type before it is the kernel's.
    bound = {"shifts": 1e-5, "convolution": 2.0**-8}[formulation]
    np.testing.assert_allclose(dkernel, expected_dkernel, rtol=bound, atol=2e-6 * np.abs(expected_dkernel).max())


def test_used_twice_under_jit() -> None:
    """Both kernels get their own gradient, and the map the sum of two."""
    x, first, dy = arrays((5, 4), (3, 3))
    second = arrays((5, 4), (5, 5))[1]

    def loss(f, x: jax.Array, first: jax.Array, second: jax.Array) -> jax.Array:
        return (f(jnp.tanh(f(x, first)), second) * dy).sum() + f(x, second).sum()

    @jax.jit
    def both(*args: jax.Array) -> list[tuple[jax.Array, ...]]:
        return [
            jax.grad(lambda *a, f=f: loss(f, *a), (0, 1, 2))(*args)
            for f in (depthwise_conv2d, reference.depthwise_conv2d)
        ]

    for ours, expected in zip(*both(x, first, second), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=3e-6 * np.abs(expected).max())


def test_vmap_is_a_loop() -> None:
    batches = [arrays((4, 3), (3, 3)), arrays((4, 3), (3, 3))]
    batches[1] = [array[..., ::-1] - 1 for array in batches[1]]
    stacked = [jnp.stack(pair) for pair in zip(*batches, strict=True)]

    def run(x: jax.Array, kernel: jax.Array, dy: jax.Array) -> tuple[jax.Array, Gradients]:
        return forward_and_backward(depthwise_conv2d, x, kernel, dy)

    ours, alone = jax.jit(jax.vmap(run))(*stacked), jax.jit(run)
    for i, batch in enumerate(batches):
        for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(alone(*batch)), strict=True):
            np.testing.assert_allclose(one[i], other, rtol=1e-5, atol=2e-6 * np.abs(other).max())


def test_a_batch_over_eight_devices_gives_the_same() -> None:
    x, weights, dy = arrays((6, 5), (5, 5), batch=16)
    run = jax.jit(lambda *args: forward_and_backward(depthwise_conv2d, *args))
    expected = run(x, weights, dy)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    by_batch, everywhere = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    ours = run(*jax.device_put((x, weights, dy), (by_batch, everywhere, by_batch)))
    assert len(ours[0].sharding.device_set) == 8
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=2e-6 * np.abs(other).max())
