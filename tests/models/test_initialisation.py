"""Fresh weights: upstream's distributions, layer by layer and in a whole model."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rmt_jax.models import create_model, factory, variant
from rmt_jax.models.block import Block
from rmt_jax.models.initializers import KAIMING, SHORTEST_ROW, XAVIER, normal, uniform_by_fan_in
from rmt_jax.models.layers import DepthwiseConv2d, LayerNorm, Linear, conv3x3
from tests.models.small import SIZES, flat, jaxtyping_disabled


def check_uniform(values: np.ndarray, bound: float) -> None:
    """Within the bound, close to it on both sides, and with a uniform distribution's variance."""
    assert np.abs(values).max() <= bound
    assert values.min() < -0.98 * bound
    assert values.max() > 0.98 * bound
    # The deviation of the estimate is 0.45 / sqrt(n) of the variance; five of them.
    assert abs(values.var() / (bound**2 / 3) - 1) < 5 * 0.9 / math.sqrt(values.size)


@jax.jit
def create(key: jax.Array) -> nnx.State:
    return nnx.state(create_model("rmt_b_star", rngs=nnx.Rngs(key), **SIZES), nnx.Any(nnx.Param, nnx.BatchStat))


@functools.cache
def fresh(seed: int) -> dict[str, np.ndarray]:
    return flat(nnx.to_pure_dict(create(jax.random.key(seed))))


def test_linear_layers_are_normal_with_std_0_02_uncut() -> None:
    layer = Linear(1000, 500, dtype=jnp.float32, rngs=nnx.Rngs(0))
    kernel = np.asarray(layer.kernel[...])
    # Half a million numbers know their deviation to 0.1 %; a truncated_normal(0.02) would have 0.0176.
    assert abs(kernel.std() / 0.02 - 1) < 0.01
    assert abs(kernel.mean()) < 2e-4
    assert np.abs(kernel).max() > 4 * 0.02
    np.testing.assert_array_equal(layer.bias[...], 0)


@pytest.mark.parametrize("strides", [1, 2])
def test_convolutions_are_uniform_by_fan_in_biases_too(strides: int) -> None:
    layer = conv3x3(6, 1000, strides=strides, dtype=jnp.float32, rngs=nnx.Rngs(0))
    for array in (layer.kernel, layer.bias):
        check_uniform(np.asarray(array[...]), 1 / math.sqrt(9 * 6))


@pytest.mark.parametrize(("size", "bound"), [(3, 1 / 3), (5, 1 / 5)])
def test_depthwise_convolutions_count_their_fan_in_for_each_channel(size: int, bound: float) -> None:
    layer = DepthwiseConv2d(1000, size, dtype=jnp.float32, rngs=nnx.Rngs(0))
    for array in (layer.kernel, layer.bias):
        check_uniform(np.asarray(array[...]), bound)
    assert not np.array_equal(layer.kernel[0, 0, 0], layer.bias[...])


# One number, a full row of the shortest, one more, and a kernel.
SHAPES = [(1,), (SHORTEST_ROW,), (SHORTEST_ROW + 1,), (3, 3, 24, 48)]


@pytest.mark.parametrize("shape", SHAPES)
def test_draws_in_rows_are_the_draws_of_the_shape(shape: tuple[int, ...]) -> None:
    key = jax.random.key(3)
    np.testing.assert_array_equal(normal(0.02)(key, shape), nnx.initializers.normal(0.02)(key, shape))
    bound = 1 / math.sqrt(9)
    uniform = jax.random.uniform(key, shape, minval=-bound, maxval=bound)
    np.testing.assert_array_equal(uniform_by_fan_in(9)(key, shape), uniform)


@pytest.mark.parametrize("shape", [(48, 96), (3, 3, 24, 48)])
def test_draws_by_fans_are_those_of_the_library(shape: tuple[int, ...]) -> None:
    key = jax.random.key(3)
    kaiming = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
    np.testing.assert_allclose(KAIMING(key, shape), kaiming(key, shape), rtol=1e-6)
    xavier = nnx.initializers.glorot_uniform()
    np.testing.assert_allclose(XAVIER(key, shape), xavier(key, shape), rtol=1e-6, atol=1e-8)


def test_few_programs_draw_a_model() -> None:
    jaxpr = jax.make_jaxpr(lambda: nnx.state(create_model("rmt_l", rngs=nnx.Rngs(0)), nnx.Param))()
    drawn = [eqn for eqn in jaxpr.eqns if eqn.params.get("name") in ("_normal", "_uniform")]
    assert len(drawn) > 300
    assert len({(eqn.params["name"], eqn.outvars[0].aval.shape) for eqn in drawn}) < 20


def test_norms_start_at_one_and_zero() -> None:
    norm = LayerNorm(4, dtype=jnp.float32, rngs=nnx.Rngs(0))
    assert norm.epsilon == 1e-6
    np.testing.assert_array_equal(norm.scale[...], 1)
    np.testing.assert_array_equal(norm.bias[...], 0)


def test_layers_of_a_model_have_their_kinds_distribution() -> None:
    arrays = fresh(0)
    for path, array in arrays.items():
        kind = path.rsplit("/", 2)[-2:]
        if "gamma" in path:
            np.testing.assert_array_equal(array, np.float32(1e-6), err_msg=path)
        elif path.endswith(("scale", "var")):
            np.testing.assert_array_equal(array, 1, err_msg=path)
        elif path.endswith("mean"):
            np.testing.assert_array_equal(array, 0, err_msg=path)
        elif path.endswith("kernel") and array.ndim == 4:
            bound = 1 / math.sqrt(np.prod(array.shape[:3]))
            bias = arrays[path.removesuffix("kernel") + "bias"]
            assert 0.9 * bound < np.abs(array).max() <= bound, path
            assert 0.4 * bound < np.abs(bias).max() <= bound, path  # eight numbers or fewer
        elif path.endswith("kernel"):
            assert abs(array.std() / 0.02 - 1) < 5 / math.sqrt(array.size), (path, kind)
            np.testing.assert_array_equal(arrays[path.removesuffix("kernel") + "bias"], 0, err_msg=path)


def test_layer_scale_is_where_the_variant_says() -> None:
    gammas = [path for path in fresh(0) if "gamma" in path]
    expected = [f"backbone/layers/{stage}/blocks/0/gamma_{i}" for stage in (2, 3) for i in (1, 2)]
    assert sorted(gammas) == expected


def test_initial_layer_scale_is_the_fields_value() -> None:
    config = variant("rmt_nano", layer_scale=(0.25, None, None, None), **SIZES)
    block = jax.jit(lambda: nnx.state(Block(config, 0, 0.0, dtype=jnp.float32, rngs=nnx.Rngs(0))))()
    np.testing.assert_array_equal(block["gamma_1"][...], np.full(8, 0.25, np.float32))
    np.testing.assert_array_equal(block["gamma_2"][...], np.full(8, 0.25, np.float32))


def test_no_two_layers_share_their_weights() -> None:
    kernels = [array.tobytes() for path, array in fresh(0).items() if path.endswith("kernel")]
    assert len(set(kernels)) == len(kernels)


def test_the_seed_is_zero_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factory, "build_model", lambda *args, rngs, **options: rngs.params())
    with jaxtyping_disabled():
        assert create_model("rmt_nano") == nnx.Rngs(0).params() != create_model("rmt_nano", rngs=nnx.Rngs(1))


def test_the_seed_decides() -> None:
    other, again = fresh(1), flat(nnx.to_pure_dict(create(jax.random.key(0))))
    for path, array in fresh(0).items():
        np.testing.assert_array_equal(array, again[path])
        assert np.array_equal(array, other[path]) == (array.min() == array.max()), path  # all but the constants
