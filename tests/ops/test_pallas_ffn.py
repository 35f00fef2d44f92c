"""The feed-forward kernels against the specification, interpreted; and that Mosaic compiles them for TPUs."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from rmt_jax.ops import FFNWeights, feed_forward, ffn_fits, formulations, fused_ffn, pallas_chip, pallas_ffn, reference
from rmt_jax.training.chips import open_topology
from rmt_jax.training.sharding import formulations_for
from tests.models.small import arrays, small
from tests.ops.devices import per_device

EPSILON = 1e-6
Function = Callable[..., Any]

# (batch, height, width, channels, hidden channels).
CASES = {
    "part of a chunk": (2, 5, 7, 16, 64),
    "two chunks, the second not full": (2, 4, 8, 24, 200),
    "one row, more channels than lanes": (3, 1, 6, 160, 40),
    "two cores of two steps each, the last not full": (29, 2, 3, 8, 16),
    "one column, no layer scale": (1, 6, 1, 8, 24),
}
# (side, channels, hidden channels) of RMT-S and RMT-L but for the first stage.
REAL = {
    "S2": (28, 128, 512),
    "S3": (14, 256, 768),
    "S4": (7, 512, 1536),
    "L2": (28, 224, 896),
    "L4": (7, 640, 1920),
}


@pytest.fixture(autouse=True)
def interpreted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "for_tpus" not in request.node.name:
        for name in ("fused_ffn_forward", "fused_ffn_backward"):
            kernel = getattr(pallas_ffn, name)
            monkeypatch.setattr(feed_forward, name, functools.partial(kernel, interpret=True))
        forget()


def forget() -> None:
    """What was traced before a change of what a trace depends on."""
    feed_forward._result.clear_cache()
    feed_forward._gradients.clear_cache()


def shapes(channels: int, hidden: int) -> list[tuple[int, ...]]:
    """Of the weights."""
    norm = [(channels,)] * 2
    return [*norm, (channels, hidden), (hidden,), (3, 3, 1, hidden), (hidden,), (hidden, channels), *[(channels,)] * 2]


def arguments(batch: int, height: int, width: int, channels: int, hidden: int) -> tuple[jax.Array, ...]:
    """x, factor, weights and a gradient of the result."""
    rng = np.random.default_rng(0)

    def normal(shape: tuple[int, ...]) -> jax.Array:
        fan_in = np.prod(shape[:-1]) if len(shape) > 1 else 4
        return jnp.asarray(rng.standard_normal(shape) / np.sqrt(fan_in), jnp.float32)

    scale, *rest = map(normal, shapes(channels, hidden))
    gamma = rest.pop()
    x, dy = (jnp.asarray(rng.standard_normal((batch, height, width, channels)), jnp.float32) for _ in range(2))
    factor = jnp.asarray(np.resize([1.25, 0.0, 1.0], batch), jnp.float32)
    return 3 * x + 1, factor, FFNWeights(1 + scale, *rest, gamma=gamma if batch > 1 else None), dy


def with_gradients(function: Function) -> Function:
    """(x, factor, weights, gradient of the result) -> the result and the gradients of x and the weights, compiled."""

    def both(x: jax.Array, factor: jax.Array, weights: FFNWeights, dy: jax.Array) -> Any:
        result, backward = jax.vjp(lambda x, weights: function(x, factor, weights, EPSILON), x, weights)
        return result, *backward(dy)

    return jax.jit(both)


def errors(ours: Any, expected: Any) -> list[float]:
    """Of the result and of each gradient, relative to the largest magnitude."""
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True)
    return [float(jnp.abs(a.astype(jnp.float32) - b).max() / jnp.abs(b).max()) for a, b in pairs]


@pytest.mark.parametrize("sizes", CASES.values(), ids=CASES)
def test_equals_the_specification(sizes: tuple[int, ...]) -> None:
    given = arguments(*sizes)
    with jax.default_matmul_precision("highest"):
        expected = with_gradients(reference.feed_forward)(*given)
    result, *gradients = errors(with_gradients(fused_ffn)(*given), expected)
    assert result < 1e-6
    assert max(gradients) < 1e-5


def test_bfloat16_is_as_exact_as_its_products() -> None:
    x, factor, weights, dy = arguments(2, 6, 7, 32, 96)
    x, dy = x.astype(jnp.bfloat16), dy.astype(jnp.bfloat16)
    result, dx, dweights = with_gradients(fused_ffn)(x, factor, weights, dy)
    assert result.dtype == dx.dtype == jnp.bfloat16
    assert all(leaf.dtype == jnp.float32 for leaf in dweights)
    exact = with_gradients(reference.feed_forward)(x.astype(jnp.float32), factor, weights, dy.astype(jnp.float32))
    # Operands of products and what comes out are rounded by up to 2 ** -9 = 0.002.
    assert max(errors((result, dx, dweights), exact)) < 0.01


def test_weights_that_travelled_in_bfloat16_get_gradients_of_their_type() -> None:
    x, factor, weights, dy = arguments(2, 3, 4, 8, 16)
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), weights)
    result, dx, dweights = with_gradients(fused_ffn)(x, factor, rounded, dy)
    assert {leaf.dtype for leaf in jax.tree.leaves(dweights)} == {jnp.dtype(jnp.bfloat16)}
    exact = with_gradients(fused_ffn)(x, factor, jax.tree.map(lambda leaf: leaf.astype(jnp.float32), rounded), dy)
    assert max(errors((result, dx), exact[:2])) < 1e-6
    assert max(errors(dweights, exact[2])) < 0.004


def test_little_memory_changes_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    given = arguments(2, 3, 2, 128, 16)
    roomy = with_gradients(fused_ffn)(*given)
    least = pallas_ffn.Plan(3, 2, 128, 1, jnp.dtype(jnp.float32)).needed_memory(backward=True, buffers=1)
    monkeypatch.setattr(pallas_chip, "chip_memory", lambda: least)
    assert ffn_fits(3, 2, 128, 16, jnp.float32)
    forget()
    assert max(errors(with_gradients(fused_ffn)(*given), roomy)) < 1e-6
    monkeypatch.setattr(pallas_chip, "chip_memory", lambda: least - 1)
    assert not ffn_fits(3, 2, 128, 16, jnp.float32)
    forget()
    with pytest.raises(ValueError, match="8 maps of 3x2x128 with 128 hidden channels do not fit"):
        with_gradients(fused_ffn)(*given)


def mesh_of(devices: Any) -> Mesh:
    return jax.make_mesh((2, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2, devices=devices)


def on_devices(mesh: Mesh) -> Function:
    return lambda x, factor, weights, epsilon: per_device(
        functools.partial(fused_ffn, epsilon=epsilon), mesh, weights=1
    )(x, factor, weights)


def test_devices_work_on_their_own_pictures_and_add_up_the_weights_gradients() -> None:
    mesh = mesh_of(jax.devices()[:4])
    x, factor, weights, dy = arguments(4, 3, 5, 8, 16)
    x_split, dy_split = (jax.device_put(y, NamedSharding(mesh, PartitionSpec(("data", "fsdp")))) for y in (x, dy))
    ours = with_gradients(on_devices(mesh))(x_split, factor, weights, dy_split)
    assert ours[0].sharding.shard_shape(ours[0].shape) == (1, 3, 5, 8)
    assert max(errors(ours, with_gradients(fused_ffn)(x, factor, weights, dy))) < 1e-6


def test_block_loop_with_kernels_are_blocks_with_layers() -> None:
    """With drop path, layer scale and a block that is computed again."""
    model = small("rmt_b", drop_path=0.5, depths=(1, 1, 2, 1), embed_dims=(8, 8, 128, 16), remat="dots", scan=True)
    graph, params, stats = arrays(model.backbone.layers[2])
    x = jnp.asarray(np.random.default_rng(0).standard_normal((4, 3, 2, 128)), jnp.float32)

    def loss(params: Any) -> jax.Array:
        return jnp.square(nnx.merge(graph, params, stats, copy=True)(x, jax.random.split(jax.random.key(1), 2))).mean()

    found = {}
    for choice in ("layers", "kernel"):
        with formulations.asking(ffn=choice):
            found[choice] = jax.jit(jax.value_and_grad(lambda params: loss(params)))(params)
    assert max(errors(found["kernel"], found["layers"])) < 1e-5


@pytest.mark.parametrize("sizes", REAL.values(), ids=REAL)
def test_the_models_maps_fit(sizes: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    side, channels, hidden = sizes
    assert ffn_fits(side, side, channels, hidden, jnp.bfloat16)
    assert ffn_fits(side, side, channels, hidden, jnp.float32)
    monkeypatch.setattr(pallas_chip, "chip_memory", lambda: 16 * 2**20)  # v4
    assert ffn_fits(side, side, channels, hidden, jnp.bfloat16) == (side == 14)  # not of all


@pytest.mark.parametrize(("side", "channels"), [(56, 64), (56, 112), (200, 256)])
def test_narrow_maps_and_those_of_detectors_are_not_for_the_kernels(side: int, channels: int) -> None:
    assert not ffn_fits(side, side, channels, 4 * channels, jnp.bfloat16)


def test_other_types_are_refused() -> None:
    x, factor, weights, _ = arguments(1, 2, 2, 8, 16)
    with pytest.raises(ValueError, match="Expected float32 or bfloat16, got float16"):
        fused_ffn(x.astype(jnp.float16), factor, weights, EPSILON)


@pytest.mark.parametrize("name", ["S2", "S4", "L4"])
def test_compiles_for_tpus_without_moving_pictures_between_them(name: str) -> None:
    side, channels, hidden = REAL[name]
    _, devices = open_topology("v5e:2x2")
    mesh = mesh_of(devices)
    split, whole = (NamedSharding(mesh, PartitionSpec(axes)) for axes in (("data", "fsdp"), None))
    x = jax.ShapeDtypeStruct((4 * 128, side, side, channels), jnp.bfloat16, sharding=split)
    factor = jax.ShapeDtypeStruct((4 * 128,), jnp.float32, sharding=split)
    weights = FFNWeights(*(jax.ShapeDtypeStruct(s, jnp.float32, sharding=whole) for s in shapes(channels, hidden)))
    with formulations_for(mesh):
        program = with_gradients(on_devices(mesh)).lower(x, factor, weights, x).compile()
    text = program.as_text()
    assert text.count('custom_call_target="tpu_custom_call"') == 2  # forward and backward
    assert not [name for name in ("all-gather", "all-to-all", "collective-permute") if name in text]
