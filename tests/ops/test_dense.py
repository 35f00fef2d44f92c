"""Linear layers and LayerNorm, whose backward passes are written by hand, against what jax derives itself."""

import functools
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from rmt_jax.ops import formulations, layer_norm, linear, residual_layer_norm
from rmt_jax.ops.linear import sum_by_parts, sum_rows
from tests.ops.devices import per_device

EPSILON = 1e-3


def plain_linear(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    return jnp.einsum("...i,ij->...j", x, kernel) + bias


def plain_layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    x = x.astype(jnp.float32)
    return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + EPSILON) * scale + bias


def plain_residual(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    return x * plain_layer_norm(x, scale, bias)


def residual(*arguments: jax.Array) -> jax.Array:
    x, y = residual_layer_norm(*arguments, EPSILON)
    return x * y


CASES: dict[str, tuple[Callable[..., jax.Array], Callable[..., jax.Array], list[tuple[int, ...]]]] = {
    "linear": (linear, plain_linear, [(2, 3, 5, 6), (6, 4), (4,)]),
    "linear of a vector": (linear, plain_linear, [(6,), (6, 4), (4,)]),
    "LayerNorm": (lambda *args: layer_norm(*args, EPSILON), plain_layer_norm, [(2, 3, 5, 6), (6,), (6,)]),
    "LayerNorm and its input": (residual, plain_residual, [(2, 3, 5, 6), (6,), (6,)]),
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


@pytest.fixture
def by_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """LayerNorm's gradients as on GPUs, interpreted."""
    module = sys.modules["rmt_jax.ops.layer_norm"]
    kernel = functools.partial(module.triton_layer_norm_gradients, interpret=True)
    monkeypatch.setattr(module, "triton_layer_norm_gradients", kernel)
    monkeypatch.setenv(formulations.ENVIRONMENT_VARIABLE, "layer_norm=triton")


def relative_error(found: jax.Array, expected: jax.Array) -> float:
    """Of the largest number."""
    difference = found.astype(jnp.float32) - expected.astype(jnp.float32)
    return float(jnp.abs(difference).max() / jnp.abs(expected).max())


@pytest.mark.parametrize("rows", [1, 2, 13, 392, 2 * 1009])
def test_sums_by_parts(rows: int) -> None:
    x = np.random.default_rng(0).standard_normal((rows, 3, 5), dtype=np.float32)
    np.testing.assert_allclose(jax.jit(sum_by_parts)(x), x.sum(axis=0, dtype=np.float64), rtol=1e-5, atol=1e-5)


def test_sums_of_bfloat16_are_added_up_in_float32() -> None:
    x = jnp.full((4000, 8), 1 / 3, jnp.bfloat16)
    with formulations.asking(sums="by_parts"):
        found = jax.jit(sum_rows)(x)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), 4000 * float(x[0, 0]), rtol=2**-8)


@pytest.mark.usefixtures("by_triton")
@pytest.mark.parametrize("case", ["LayerNorm", "LayerNorm and its input"])
@pytest.mark.parametrize("shape", [(1, 3), (7, 64), (2, 13, 5, 80), (3, 9, 9, 512), (1, 1, 2500), (9000, 16)])
def test_the_kernel_for_gpus_gives_the_plain_gradients(case: str, shape: tuple[int, ...]) -> None:
    """Of fewer rows and channels than a program has, of more, and with a rest of either."""
    arguments = normal([shape, shape[-1:], shape[-1:], shape])
    *inputs, dy = arguments[0] + 3, *arguments[1:]
    ours, plain = (jax.vjp(function, *inputs)[1](dy) for function in CASES[case][:2])
    for found, expected in zip(ours, plain, strict=True):
        assert found.shape == expected.shape
        assert relative_error(found, expected) < 1e-5


@pytest.mark.usefixtures("by_triton")
def test_the_kernel_for_gpus_rounds_the_maps_gradient_alone() -> None:
    x, scale, bias, dy = normal([(6, 50, 32), (32,), (32,), (6, 50, 32)])
    half, half_dy = x.astype(jnp.bfloat16), dy.astype(jnp.bfloat16)
    y, pull = jax.vjp(lambda *args: layer_norm(*args, EPSILON, jnp.bfloat16), half, scale, bias)
    found = pull(half_dy)
    expected = jax.vjp(plain_layer_norm, half.astype(jnp.float32), scale, bias)[1](half_dy.astype(jnp.float32))
    assert [array.dtype for array in (y, *found)] == [jnp.bfloat16, jnp.bfloat16, jnp.float32, jnp.float32]
    for one, other, bound in zip(found, expected, (2.0**-8, 1e-6, 1e-6), strict=True):
        assert relative_error(one, other) < bound


@pytest.mark.usefixtures("by_triton")
def test_the_kernel_for_gpus_keeps_to_a_devices_pictures() -> None:
    """The gradients of scale and bias are those of all pictures."""
    scale, bias = normal([(12,), (12,)])
    x, dx, dy = normal([(16, 3, 4, 12), (16, 3, 4, 12), (16, 3, 4, 12)])
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    normalise = functools.partial(residual_layer_norm, epsilon=EPSILON)
    split = jax.device_put((x, dx, dy), NamedSharding(mesh, PartitionSpec("data")))

    def both(function: Callable[..., Any], x: jax.Array, *gradients: jax.Array) -> tuple[Any, ...]:
        y, pull = jax.vjp(function, x, scale, bias)
        return y, pull(gradients)

    run = jax.jit(both, static_argnums=0)
    expected, found = run(normalise, x, dx, dy), run(per_device(normalise, mesh, weights=2), *split)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


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
