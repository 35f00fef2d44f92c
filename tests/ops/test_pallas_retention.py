"""The Pallas kernels against the specification, interpreted; and that Mosaic compiles them for TPUs."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from rmt_jax.ops import (
    Heads,
    axis_decay,
    log_decay_rates,
    manhattan_decay,
    pairs_to_halves,
    pallas_chip,
    pallas_kernels,
    pallas_retention,
    reference,
    rotary_phase,
)
from rmt_jax.ops.pallas_retention import fits, fused_retention_backward, fused_retention_forward
from rmt_jax.training.chips import open_topology
from tests.compilation import SAME_BITS
from tests.ops.devices import per_device

Maps = list[jax.Array]
Function = Callable[..., jax.Array]

# The last axis of a map fills part of a tile of 128 lanes, a tile, or more.
AXES = {
    "part of a tile": (5, 7, 4, 8),
    "one row": (1, 6, 2, 16),
    "one column": (6, 1, 2, 16),
    "odd heads": (2, 9, 3, 16),
    "two tiles": (3, 5, 6, 32),
    "tiles stacked differently": (1, 40, 7, 32),
}
FULL = {
    "part of a tile": (5, 7, 4, 8),
    "one row": (1, 6, 2, 16),
    "odd heads": (4, 8, 3, 32),
    "two tiles": (3, 5, 6, 32),
    "more tokens than lanes": (9, 16, 2, 16),
}
CASES = [(*sizes, False) for sizes in AXES.values()] + [(*sizes, True) for sizes in FULL.values()]
NAMES = [f"axes, {name}" for name in AXES] + [f"full, {name}" for name in FULL]

# (height, width, channels, heads, full) of RMT-S, RMT-L and the third stage of RMT-T.
REAL = {
    "S1": (56, 56, 64, 4, False),
    "S2": (28, 28, 128, 4, False),
    "S3": (14, 14, 256, 8, False),
    "S4": (7, 7, 512, 16, True),
    "L1": (56, 56, 112, 7, False),
    "L2": (28, 28, 224, 7, False),
    "L3": (14, 14, 448, 14, False),
    "L4": (7, 7, 640, 20, True),
    "T3": (14, 14, 256, 8, True),
}


@pytest.fixture(autouse=True)
def short_iterations(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer rows and columns an iteration: what is unrolled is what takes XLA's time on a CPU."""
    if request.node.get_closest_marker("slow") is None:
        monkeypatch.setattr(pallas_kernels, "_AT_ONCE", 2)


def rates(heads: int) -> np.ndarray:
    return log_decay_rates(heads, 2, 4)


def maps(batch: int, height: int, width: int, channels: int, *, scale: float = 1.0, count: int = 4) -> Maps:
    """q, k, v and a gradient of the result."""
    rng = np.random.default_rng(0)
    normal = [rng.standard_normal((batch, height, width, channels)).astype(np.float32) for _ in range(count)]
    return [jnp.asarray(np.float32(scale if i < 2 else 1) * x) for i, x in enumerate(normal)]


def specification(heads: int, full: bool) -> Function:
    """`reference` for whole maps: rotation, scaling, retention."""
    of_heads = jax.vmap(reference.retention, in_axes=(1, 1, 1, 0), out_axes=1)
    along_rows = jax.vmap(of_heads, in_axes=(0, 0, 0, None))
    along_columns = jax.vmap(of_heads, in_axes=(1, 1, 1, None), out_axes=1)

    def picture(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        height, width, channels = q.shape
        dim = channels // heads
        phase = jnp.asarray(rotary_phase(height, width, dim))[:, :, None]
        q, k, v = (x.reshape(height, width, heads, dim) for x in (q, k, v))
        q, k = reference.rotate(q, phase), reference.rotate(k * dim**-0.5, phase)
        if full:
            q, k, v = (x.reshape(-1, heads, dim) for x in (q, k, v))
            result = of_heads(q, k, v, manhattan_decay(height, width, rates(heads)))
        else:
            along_width = along_rows(q, k, v, axis_decay(width, rates(heads)))
            result = along_columns(q, k, along_width, axis_decay(height, rates(heads)))
        return result.reshape(height, width, channels)

    return jax.vmap(picture)


def heads_of(heads: int, full: bool) -> Heads:
    return Heads(tuple(rates(heads).tolist()), not full)


def fused(heads: int, full: bool, *, interpret: bool = True) -> Function:
    """The kernels of maps with pairs side by side, as the specification has them."""
    described = heads_of(heads, full)

    @jax.custom_vjp
    def function(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return fused_retention_forward(described, q, k, v, interpret=interpret)

    function.defvjp(
        lambda *qkv: (function(*qkv), qkv),
        lambda qkv, dout: fused_retention_backward(described, *qkv, dout, interpret=interpret),
    )
    return lambda q, k, v: function(pairs_to_halves(q, heads), pairs_to_halves(k, heads), v)


def with_gradients(function: Function, *, options: dict[str, bool] | None = None) -> Callable[..., Maps]:
    """(q, k, v, gradient of the result) -> the result and the gradients of q, k and v, compiled."""

    def both(q: jax.Array, k: jax.Array, v: jax.Array, dout: jax.Array) -> Maps:
        result, backward = jax.vjp(function, q, k, v)
        return [result, *backward(dout)]

    return jax.jit(both, compiler_options=options)


def errors(ours: Maps, expected: Maps) -> list[float]:
    """Of the result and of each gradient, relative to the largest magnitude."""
    return [
        float(jnp.abs(a.astype(jnp.float32) - b).max() / jnp.abs(b).max()) for a, b in zip(ours, expected, strict=True)
    ]


@pytest.mark.parametrize(("height", "width", "heads", "dim", "full"), CASES, ids=NAMES)
def test_equals_the_specification(height: int, width: int, heads: int, dim: int, full: bool) -> None:
    arguments = maps(2, height, width, heads * dim)
    ours = with_gradients(fused(heads, full))(*arguments)
    result, *gradients = errors(ours, with_gradients(specification(heads, full))(*arguments))
    assert result < 1e-6
    assert max(gradients) < 1e-5


@pytest.mark.parametrize(("height", "width", "heads", "dim", "full"), [(8, 9, 4, 16, False), (7, 7, 4, 32, True)])
def test_bfloat16_is_as_exact_as_its_products(height: int, width: int, heads: int, dim: int, full: bool) -> None:
    arguments = [x.astype(jnp.bfloat16) for x in maps(1, height, width, heads * dim)]
    ours = with_gradients(fused(heads, full))(*arguments)
    assert {x.dtype for x in ours} == {jnp.dtype(jnp.bfloat16)}
    exact = with_gradients(specification(heads, full))(*[x.astype(jnp.float32) for x in arguments])
    # Operands of products, the result between the axes and what comes out are rounded by up to 2 ** -9 = 0.002.
    assert max(errors(ours, exact)) < 0.01


@pytest.mark.parametrize("full", [False, True])
def test_large_logits_neither_overflow_nor_vanish(full: bool) -> None:
    arguments = maps(1, 4, 6, 32, scale=10)
    ours = with_gradients(fused(2, full))(*arguments)
    assert all(bool(np.isfinite(x).all()) for x in ours)
    # Logits of a few hundred, of which exponentials overflow, are known to 3e-5 each; gradients are small differences.
    assert max(errors(ours, with_gradients(specification(2, full))(*arguments))) < 1e-3


def test_pictures_do_not_mix_and_steps_of_several_equal_single_ones() -> None:
    arguments = maps(3, 4, 5, 32)  # all three in one step
    together = with_gradients(fused(2, False), options=SAME_BITS)(*arguments)
    alone = [with_gradients(fused(2, False), options=SAME_BITS)(*[x[i : i + 1] for x in arguments]) for i in range(3)]
    for i, result in enumerate(together):
        np.testing.assert_array_equal(result, jnp.concatenate([x[i] for x in alone]))


def test_little_memory_changes_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = maps(2, 10, 9, 32)
    roomy = with_gradients(fused(2, False), options=SAME_BITS)(*arguments)
    plan = pallas_retention.Plan(10, 9, 32, (0.0, 0.0), jnp.dtype(jnp.float32), False)
    least = pallas_retention._needed_memory(plan, True, pallas_retention._TIGHT)
    monkeypatch.setattr(pallas_chip, "chip_memory", lambda: least)
    assert pallas_retention._step(plan, True, 2) == pallas_retention._TIGHT
    for tight, expected in zip(with_gradients(fused(2, False), options=SAME_BITS)(*arguments), roomy, strict=True):
        np.testing.assert_array_equal(tight, expected)


def test_devices_work_on_their_own_pictures() -> None:
    mesh = jax.make_mesh((2, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:4])
    arguments = maps(4, 3, 5, 32)
    on_devices = [jax.device_put(x, NamedSharding(mesh, PartitionSpec(("data", "fsdp")))) for x in arguments]
    ours = with_gradients(per_device(fused(2, False), mesh), options=SAME_BITS)(*on_devices)
    assert ours[0].sharding.shard_shape(ours[0].shape) == (1, 3, 5, 32)
    for x, expected in zip(ours, with_gradients(fused(2, False), options=SAME_BITS)(*arguments), strict=True):
        np.testing.assert_array_equal(x, expected)


@pytest.mark.parametrize("sizes", REAL.values(), ids=REAL)
@pytest.mark.parametrize("memory", [16, 64, 128])
def test_the_models_maps_fit(
    sizes: tuple[int, int, int, int, bool], memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pallas_chip, "chip_memory", lambda: memory * 2**20)
    height, width, channels, heads, full = sizes
    assert fits(height, width, channels, jnp.bfloat16, heads_of(heads, full))
    assert memory == 16 or fits(height, width, channels, jnp.float32, heads_of(heads, full))


def test_heads_that_straddle_tiles_do_not_fit() -> None:
    assert not fits(14, 14, 96, jnp.bfloat16, heads_of(8, full=False))


def test_maps_of_detectors_do_not_fit() -> None:
    assert not fits(200, 336, 64, jnp.bfloat16, heads_of(4, full=False))
    q, k, v = maps(1, 200, 336, 64, count=3)
    with pytest.raises(ValueError, match="200x336x64 does not fit"):
        fused(4, False)(q, k, v)


@pytest.mark.parametrize(
    ("shapes", "dtypes", "heads", "message"),
    [
        ([(1, 4, 4, 32)] * 3, "ffe", 2, "q, k and v differ"),
        ([(1, 4, 4, 32)] * 3, "eee", 2, "Expected float32 or bfloat16, got float16"),
        ([(1, 4, 4, 48)] * 3, "fff", 2, "heads of 2, 4, 8, 16, 32, 64 or 128 channels"),
    ],
)
def test_arguments_that_cannot_be(shapes: list[tuple[int, ...]], dtypes: str, heads: int, message: str) -> None:
    arguments = [jnp.zeros(shape, dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
    with pytest.raises(ValueError, match=message):
        fused(heads, False)(*arguments)


@pytest.mark.parametrize("sizes", [REAL[name] for name in ("S1", "S3", "L2", "T3")], ids=["S1", "S3", "L2", "T3"])
def test_compiles_for_tpus_without_moving_pictures_between_them(sizes: tuple[int, int, int, int, bool]) -> None:
    height, width, channels, heads, full = sizes
    _, devices = open_topology("v5e:2x2")
    mesh = jax.make_mesh((2, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2, devices=devices)
    sharding = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    argument = jax.ShapeDtypeStruct((4 * 128, height, width, channels), jnp.bfloat16, sharding=sharding)
    program = with_gradients(per_device(fused(heads, full, interpret=False), mesh)).lower(*[argument] * 4).compile()
    text = program.as_text()
    assert text.count('custom_call_target="tpu_custom_call"') == 2  # forward and backward
    assert not [name for name in ("all-gather", "all-to-all", "all-reduce", "collective-permute") if name in text]
