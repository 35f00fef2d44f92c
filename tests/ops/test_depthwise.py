"""Depthwise convolution and its hand-written backward pass against XLA's grouped convolution, bias and residual."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from rmt_jax.ops import depthwise_conv2d, formulations, reference
from tests.ops import naive
from tests.ops.devices import per_device

Gradients = tuple[jax.Array, jax.Array, jax.Array]

MODULE = sys.modules["rmt_jax.ops.depthwise"]
KERNELS_FOR_GPUS = ("triton_depthwise", "triton_depthwise_gradients")
KERNELS = [(1, 1), (3, 3), (5, 5), (7, 7), (3, 7), (5, 1)]
MAPS = [(1, 1), (2, 3), (9, 5)]  # smaller than most kernels, and larger in one direction
# Each kernel on a small map and on the large one, with a residual on one of them.
CASES = [(MAPS[i], kernel, (i == 2) == (j < 3)) for j, kernel in enumerate(KERNELS) for i in (j % 2, 2)]


def arrays(size: tuple[int, int], kernel: tuple[int, int], batch: int = 2, channels: int = 3) -> list[jax.Array]:
    """A map, a kernel, a bias and a cotangent."""
    rng = np.random.default_rng(0)
    shapes = (batch, *size, channels), (*kernel, 1, channels), (channels,), (batch, *size, channels)
    return [jnp.asarray(rng.standard_normal(shape).astype(np.float32)) for shape in shapes]


def specification(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    return reference.depthwise_conv2d(x, kernel) + bias


@pytest.fixture(autouse=True, params=["shifts", "convolution", "triton"])
def formulation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test of this file is of all."""
    interpret = {name: functools.partial(getattr(MODULE, name), interpret=True) for name in KERNELS_FOR_GPUS}
    for name, function in interpret.items():
        monkeypatch.setattr(MODULE, name, function)
    monkeypatch.setenv(formulations.ENVIRONMENT_VARIABLE, f"depthwise={request.param}")
    return request.param


def forward_and_backward(f, *arguments: jax.Array) -> tuple[jax.Array, Gradients]:
    *inputs, dy = arguments
    y, vjp = jax.vjp(f, *inputs)
    return y, vjp(dy)


@pytest.mark.parametrize(("size", "kernel", "residual"), CASES)
def test_output_and_gradients_equal_the_specifications(
    size: tuple[int, int], kernel: tuple[int, int], residual: bool
) -> None:
    def expected_of(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
        return specification(x, kernel, bias) + float(residual) * x

    @jax.jit
    def both(*args: jax.Array) -> list[tuple[jax.Array, Gradients]]:
        ours_of = functools.partial(depthwise_conv2d, residual=residual)
        return [forward_and_backward(f, *args) for f in (ours_of, expected_of)]

    ours, expected = both(*arrays(size, kernel))
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=2e-6 * np.abs(other).max())


@pytest.mark.parametrize("channels", [16, 80, 136])
def test_many_channels_and_positions(channels: int) -> None:
    """More of either than a program of the GPU's kernels has, with and without a rest, over several pictures."""
    arguments = arrays((13, 14), (3, 5), batch=6, channels=channels)
    ours, expected = (
        jax.jit(functools.partial(forward_and_backward, f))(*arguments) for f in (depthwise_conv2d, specification)
    )
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=2e-6 * np.abs(other).max())


@pytest.mark.parametrize(("batch", "size"), [(1, (1, 4)), (1, (7, 3)), (1, (11, 2)), (3, (5, 5)), (2, (28, 2))])
def test_gradients_of_any_number_of_rows(batch: int, size: tuple[int, int]) -> None:
    """Which CPUs add up in as many parts as divide them: 1, 7, 8 of 11 filled up, 5 and 8."""
    arguments = arrays(size, (3, 3), batch=batch)
    (_, ours), (_, expected) = (
        jax.jit(functools.partial(forward_and_backward, f))(*arguments) for f in (depthwise_conv2d, specification)
    )
    for gradient, other in zip(ours, expected, strict=True):
        np.testing.assert_allclose(gradient, other, rtol=1e-5, atol=1e-5 * np.abs(other).max())


def test_equals_the_loop_over_positions() -> None:
    x, weights, bias, _ = arrays((4, 5), (3, 5))
    ours = jax.jit(depthwise_conv2d)(x, weights, bias)
    np.testing.assert_allclose(ours, naive.depthwise_conv2d(x, weights) + bias, rtol=1e-5, atol=5e-6)


def test_channels_do_not_mix() -> None:
    x, weights, bias, _ = arrays((4, 4), (3, 3))
    changed = x.at[..., 1].add(1)
    run = jax.jit(depthwise_conv2d)
    difference = np.abs(run(changed, weights, bias) - run(x, weights, bias)).max(axis=(0, 1, 2))
    assert ((difference > 0) == [False, True, False]).all()


def test_bfloat16_maps_are_summed_in_float32(formulation: str) -> None:
    x, weights, bias, dy = arrays((6, 5), (5, 5))
    half, half_dy = x.astype(jnp.bfloat16), dy.astype(jnp.bfloat16)
    # A float32 kernel, as the models have it; a convolution takes one of the map's type.
    weights = weights.astype(jnp.bfloat16).astype(jnp.float32) if formulation == "convolution" else weights
    zero = jnp.zeros_like(bias)  # with one, a convolution's result is rounded before it is added
    y, (dx, dkernel, dbias) = jax.jit(lambda *a: forward_and_backward(depthwise_conv2d, *a))(
        half, weights, zero, half_dy
    )
    expected, (expected_dx, expected_dkernel, _) = jax.jit(lambda *a: forward_and_backward(specification, *a))(
        half.astype(jnp.float32), weights, zero, half_dy.astype(jnp.float32)
    )
    assert (y.dtype, dx.dtype, dkernel.dtype, dbias.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32, jnp.float32)
    # Only the result is rounded, to 8 bits; sums of bfloat16 would be several times worse.
    np.testing.assert_allclose(y.astype(jnp.float32), expected, rtol=2.0**-8, atol=1e-5)
    np.testing.assert_allclose(dx.astype(jnp.float32), expected_dx, rtol=2.0**-8, atol=1e-5)
    # A convolution's weight gradient is of the map's type before it is the kernel's.
    bound = 2.0**-8 if formulation == "convolution" else 1e-5
    np.testing.assert_allclose(dkernel, expected_dkernel, rtol=bound, atol=2e-6 * np.abs(expected_dkernel).max())


def test_used_twice_under_jit() -> None:
    """Both kernels get their own gradient, and the map the sum of two."""
    x, first, bias, dy = arrays((5, 4), (3, 3))
    second = arrays((5, 4), (5, 5))[1]

    def loss(f, x: jax.Array, first: jax.Array, second: jax.Array) -> jax.Array:
        return (f(jnp.tanh(f(x, first, bias)), second, bias) * dy).sum() + f(x, second, bias).sum()

    @jax.jit
    def both(*args: jax.Array) -> list[tuple[jax.Array, ...]]:
        return [jax.grad(lambda *a, f=f: loss(f, *a), (0, 1, 2))(*args) for f in (depthwise_conv2d, specification)]

    for ours, expected in zip(*both(x, first, second), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=3e-6 * np.abs(expected).max())


def test_vmap_is_a_loop() -> None:
    batches = [arrays((4, 3), (3, 3)), arrays((4, 3), (3, 3))]
    batches[1] = [array[..., ::-1] - 1 for array in batches[1]]
    stacked = [jnp.stack(pair) for pair in zip(*batches, strict=True)]

    def run(*arguments: jax.Array) -> tuple[jax.Array, Gradients]:
        return forward_and_backward(depthwise_conv2d, *arguments)

    ours, alone = jax.jit(jax.vmap(run))(*stacked), jax.jit(run)
    for i, batch in enumerate(batches):
        for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(alone(*batch)), strict=True):
            np.testing.assert_allclose(one[i], other, rtol=1e-5, atol=2e-6 * np.abs(other).max())


def test_a_batch_over_eight_devices_gives_the_same() -> None:
    """Kernels keep to a device's pictures, whose gradients are added up."""
    *arguments, dy = arrays((6, 5), (5, 5), batch=16)
    expected = jax.jit(lambda *args: forward_and_backward(depthwise_conv2d, *args))(*arguments, dy)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    by_batch, everywhere = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    run = jax.jit(lambda *args: forward_and_backward(per_device(depthwise_conv2d, mesh, weights=2), *args))
    ours = run(*jax.device_put((*arguments, dy), (by_batch, everywhere, everywhere, by_batch)))
    assert len(ours[0].sharding.device_set) == 8
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=2e-6 * np.abs(other).max())
