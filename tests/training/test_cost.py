"""Operations, collectives and bytes are counted as often as they run."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from rmt_jax.models.flops import count_flops as count_multiply_accumulates
from rmt_jax.training.cost import Traffic, collective_traffic, count_flops, loop_factor
from rmt_jax.training.sharding import MeshConfig, batch_sharding, make_mesh, replicated
from tests.models.small import abstract

X, W = jnp.ones((6, 4)), jnp.ones((4, 4))
PRODUCT = 2 * 6 * 4 * 4


@pytest.fixture(autouse=True, scope="module")
def asked_formulations() -> None:
    """None: what they cost is what is tested."""


def looped(x: jax.Array, w: jax.Array) -> jax.Array:
    return jax.lax.scan(lambda x, _: (x @ w, None), x, length=5)[0]


@pytest.mark.parametrize(
    ("function", "count"),
    [
        (lambda x, w: x @ w + x, PRODUCT),
        (jax.jit(lambda x, w: (x @ w) @ w), 2 * PRODUCT),
        (looped, 5 * PRODUCT),
        (lambda x, w: jax.lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: (x @ w) @ w), 2 * PRODUCT),
        (lambda x, w: jax.vmap(lambda row: row @ w)(x), PRODUCT),
        (jax.grad(lambda x, w: (x @ w).sum(), argnums=(0, 1)), 3 * PRODUCT),
        (jax.grad(jax.checkpoint(lambda x, w: jnp.sin(x @ w).sum()), argnums=(0, 1)), 4 * PRODUCT),
    ],
    ids=["product", "jit", "scan", "cond", "vmap", "gradient", "recomputed"],
)
def test_matrix_products(function: Callable[..., Any], count: int) -> None:
    assert count_flops(jax.make_jaxpr(function)(X, W).jaxpr) == count


def test_convolutions() -> None:
    def convolve(x: jax.Array, kernel: jax.Array, groups: int = 1) -> jax.Array:
        dimensions = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=dimensions, feature_group_count=groups
        )

    x = jnp.ones((2, 5, 7, 8))
    assert count_flops(jax.make_jaxpr(convolve)(x, jnp.ones((3, 3, 8, 6))).jaxpr) == 2 * 2 * 5 * 7 * 6 * 9 * 8
    grouped = jax.make_jaxpr(lambda x, kernel: convolve(x, kernel, 8))(x, jnp.ones((3, 3, 1, 8))).jaxpr
    assert count_flops(grouped) == 2 * 2 * 5 * 7 * 8 * 9


def test_a_whole_model_agrees_with_the_published_count() -> None:
    """The published count has the depthwise convolutions and normalisations besides, which are no products here."""
    model = abstract("rmt_s")
    model.eval()
    jaxpr = jax.make_jaxpr(lambda model, x: model(x))(model, jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)).jaxpr
    ratio = count_flops(jaxpr) / (2 * count_multiply_accumulates(model.config, 224, 224))
    assert 0.95 < ratio < 1


def test_collectives_of_a_compiled_program() -> None:
    """On the eight devices: a weight gathered once, and a mean over the batch three times in a loop."""
    mesh = make_mesh(MeshConfig(1, 8))
    split = jax.NamedSharding(mesh, jax.P("fsdp", None))

    def step(x: jax.Array, w: jax.Array) -> jax.Array:
        w = jax.lax.with_sharding_constraint(w, replicated(mesh))
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w) + x.mean(), None), x, length=3)[0]

    compiled = jax.jit(step, in_shardings=(batch_sharding(mesh), split), out_shardings=batch_sharding(mesh))
    text = compiled.lower(jnp.ones((16, 32)), jnp.ones((32, 32))).compile().as_text()
    expected = {"all-gather": Traffic(1, 32 * 32 * 4 * 7 // 8), "all-reduce": Traffic(3, 3 * 2 * 4 * 7 // 8)}
    assert collective_traffic(text, 8) == expected


TPU_TEXT = """\
HloModule jit_step

%add (x: bf16[], y: bf16[]) -> bf16[] {
  ROOT %sum = bf16[] add(%x, %y)
}

%async_collective_fusion.1 (param_0: bf16[512,32]) -> bf16[512,512] {
  %all-gather.11 = bf16[512,512]{0,1:T(8,128)(2,1)} all-gather(%param_0), channel_id=2, replica_groups=mesh['axis_0'=1,\
'axis_1'=16,'axis_2'=16], device_ids=([16,16]T(1,0)) {'axis_1'}, dimensions={1}, use_global_device_ids=true
}

%async_collective_fusion.2 (param_0: bf16[512,32]) -> bf16[512,512] {
  %all-gather.13 = bf16[512,512]{0,1:T(8,128)(2,1)S(1)} all-gather(%param_0), channel_id=2, replica_groups=mesh[\
'axis_0'=1,'axis_1'=16,'axis_2'=16], device_ids=([16,16]T(1,0)) {'axis_1'}, dimensions={1}, use_global_device_ids=true
}

%all-reduce-scatter.2 (input_0: bf16[512,512]) -> bf16[512,32] {
  %all-reduce.7 = bf16[512,512]{0,1:T(8,128)(2,1)} all-reduce(%input_0), channel_id=1, replica_groups={{0,1,2,3},\
{4,5,6,7}}, to_apply=%add
}

%body (state: (s32[], bf16[64])) -> (s32[], bf16[64]) {
  %all-to-all.1 = bf16[64]{0} all-to-all(%state), channel_id=9, replica_groups=[1,8]<=[8]
}

%condition (state: (s32[], bf16[64])) -> pred[] {
  %limit = s32[]{:T(128)} constant(18)
  ROOT %lt = pred[]{:T(512)} compare(%counter, %limit), direction=LT
}

ENTRY %main (p: bf16[512,32]) -> bf16[512,32] {
  %looped = (s32[], bf16[64]) while(%p), condition=%condition, body=%body
  %start = bf16[512,512] fusion(%p), kind=kCustom, calls=%async_collective_fusion.1
  %done = bf16[512,512] fusion(%p, %start), kind=kCustom, calls=%async_collective_fusion.2
  %scattered = bf16[512,32] fusion(%done), kind=kCustom, calls=%all-reduce-scatter.2
  %permute = (bf16[64,8]{1,0}, bf16[64,8]{1,0}, u32[], u32[]) collective-permute-start(%p), source_target_pairs={{0,1}}
  ROOT %all-reduce.4 = f32[512,32] all-reduce(%scattered), channel_id=4, replica_groups=[2,4]<=[8], to_apply=%add
}
"""


def test_the_forms_of_tpu_programs() -> None:
    """A gather in parts counts once, and a sum in a fusion that keeps a slice of it is a reduce-scatter."""
    matrix = 512 * 512 * 2
    assert collective_traffic(TPU_TEXT, 8) == {
        "all-gather": Traffic(1, matrix * 15 // 16),
        "all-reduce": Traffic(1, 2 * (512 * 32 * 4) * 3 // 4),
        "all-to-all": Traffic(18, 18 * 128 * 7 // 8),
        "collective-permute": Traffic(1, 64 * 8 * 2),
        "reduce-scatter": Traffic(1, matrix * 3 // 4),
    }


@pytest.mark.parametrize(
    ("line", "kind", "sent"),
    [
        ("f32[100]{0} all-reduce-start(%a)", "all-reduce", 2 * 400 * 3 // 4),
        ("(f32[100]{0}, f32[200]{0}) all-reduce-start(%a, %b)", "all-reduce", 2 * 1200 * 3 // 4),
        ("(f32[25]{0}, f32[100]{0}) all-gather-start(%a)", "all-gather", 400 * 3 // 4),
        (
            "((f32[25]{0:T(128)}, f32[50]{0}), (f32[100]{0:T(128)}, /*index=1*/f32[200]{0})) all-gather-start(%a, %b)",
            "all-gather",
            1200 * 3 // 4,
        ),
        ("(f32[25]{0}, f32[100]{0}, u32[], u32[]) all-gather-start(%a)", "all-gather", 400 * 3 // 4),
        (
            "((f32[100]{0}, f32[200]{0}), (f32[25]{0}, f32[50]{0})) reduce-scatter-start(%a, %b)",
            "reduce-scatter",
            1200 * 3 // 4,
        ),
        ("((f32[100]{0}), f32[25]{0}) reduce-scatter-start(%a)", "reduce-scatter", 400 * 3 // 4),
        ("(f32[100]{0}, f32[100]{0}, u32[], u32[]) collective-permute-start(%a)", "collective-permute", 400),
        (
            "((f32[100]{0}, f32[7]{0}), (f32[100]{0}, f32[7]{0})) collective-permute-start(%a, %b)",
            "collective-permute",
            428,
        ),
    ],
)
def test_what_asynchronous_collectives_send(line: str, kind: str, sent: int) -> None:
    """XLA for GPUs lets the gradients of several parameters travel together."""
    text = f"ENTRY %main (a: f32[100]) -> f32[100] {{\n  %x = {line}, channel_id=1, replica_groups={{{{0,1,2,3}}}}\n}}"
    assert collective_traffic(text, 4) == {kind: Traffic(1, sent)}


SLICES_TEXT = """\
HloModule jit_step

ENTRY %main (p: f32[128,512]) -> f32[128,512] {
  %reduce-scatter.1 = f32[128,512]{1,0:T(8,128)} reduce-scatter(%p), channel_id=1, replica_groups={{0,1,2,3}}
  %send = (f32[64,8,128]{2,1,0:T(8,128)}, u32[], token[]) send(%reduce-scatter.1, %after-all), channel_id=2, \
is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",\
_xla_host_transfer_rendezvous="all-reduce.1_0",_xla_megascale_reduce_operation="SUM",ATTRIBUTES}
  %send-done = token[] send-done(%send), channel_id=2, is_host_transfer=true, frontend_attributes={\
_xla_host_transfer_handler_name="xla_megascale_runtime"}
  %recv = (f32[64,8,128]{2,1,0:T(8,128)}, u32[], token[]) recv(%after-all), channel_id=1, is_host_transfer=true, \
frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",ATTRIBUTES}
  %callback = (f32[64]{0}, u32[], token[]) send(%p, %after-all), channel_id=3, is_host_transfer=true, \
frontend_attributes={_xla_host_transfer_handler_name="tf_rendezvous"}
}
"""
HANDED_OVER = 64 * 8 * 128 * 4


@pytest.mark.parametrize(
    ("target", "transfer", "sent"),
    [
        ('"{1,2}x{0:3}"', "ALL_REDUCE", HANDED_OVER),
        ('"{1,2,3,4}x{0:3}"', "ALL_REDUCE", HANDED_OVER * 3 // 2),
        ('"{1,2,3,4}x{0:3}"', "ALL_GATHER", HANDED_OVER * 3),
        ('"{1,2,3,4}x{0:3}"', "REDUCE_SCATTER", HANDED_OVER * 3 // 4),
        ("{{100000,100001,200000,200001}}", "ALL_TO_ALL", HANDED_OVER // 2),
        ("{{100000->200000},{200000->100000}}", "ONE_TO_ONE", HANDED_OVER),
    ],
)
def test_what_goes_between_slices(target: str, transfer: str, sent: int) -> None:
    """What the hosts' runtime sends is counted apart from the links of a slice, and what it receives is not."""
    attributes = f'_xla_megascale_target={target},_xla_megascale_transfer_type="{transfer}"'
    assert collective_traffic(SLICES_TEXT.replace("ATTRIBUTES", attributes), 8) == {
        "between slices": Traffic(1, sent),
        "reduce-scatter": Traffic(1, 128 * 512 * 4 * 3),
    }


LOOP_TEXT = """\
HloModule jit_step

%slice_of_weights (param_0: f32[18,64], param_1: s32[]) -> f32[64] {
  %param_0 = f32[18,64]{1,0:T(8,128)} parameter(0)
  %param_1 = s32[]{:T(128)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %taken = f32[1,64]{1,0:T(1,128)} dynamic-slice(%param_0, %param_1, %zero), dynamic_slice_sizes={1,64}
  ROOT %shaped = f32[64]{0:T(128)} bitcast(%taken)
}

%kept (param_0: f32[18,64], param_1: f32[64], param_2: s32[]) -> f32[18,64] {
  %param_0 = f32[18,64]{1,0:T(8,128)} parameter(0)
  %param_1 = f32[64]{0:T(128)} parameter(1)
  %param_2 = s32[]{:T(128)} parameter(2)
  %row = f32[1,64]{1,0:T(1,128)} bitcast(%param_1)
  ROOT %updated = f32[18,64]{1,0:T(8,128)} dynamic-update-slice(%param_0, %row, %param_2, %param_2)
}

%body (state: (s32[], f32[18,64], f32[18,64])) -> (s32[], f32[18,64], f32[18,64]) {
  %state = (s32[]{:T(128)}, f32[18,64]{1,0:T(8,128)}, f32[18,64]{1,0:T(8,128)}) parameter(0)
  %counter = s32[]{:T(128)} get-tuple-element(%state), index=0
  %weights = f32[18,64]{1,0:T(8,128)} get-tuple-element(%state), index=1
  %outputs = f32[18,64]{1,0:T(8,128)} get-tuple-element(%state), index=2
  %weight = f32[64]{0:T(128)} fusion(%weights, %counter), kind=kLoop, calls=%slice_of_weights
  %sine = f32[64]{0:T(128)} sine(%weight)
  %result = f32[18,64]{1,0:T(8,128)} fusion(%outputs, %sine, %counter), kind=kLoop, calls=%kept
  ROOT %next = (s32[]{:T(128)}, f32[18,64]{1,0:T(8,128)}, f32[18,64]{1,0:T(8,128)}) tuple(%counter, %weights, %result)
}

%condition (state: (s32[], f32[18,64], f32[18,64])) -> pred[] {
  %limit = s32[]{:T(128)} constant(18)
  ROOT %lt = pred[]{:T(512)} compare(%counter, %limit), direction=LT
}

ENTRY %main (p: f32[18,64]) -> f32[18,64] {
  %p = f32[18,64]{1,0:T(8,128)} parameter(0)
  %start = (s32[]{:T(128)}, f32[18,64]{1,0:T(8,128)}, f32[18,64]{1,0:T(8,128)}) tuple(%zero, %p, %p)
  %looped = (s32[], f32[18,64]{1,0}, f32[18,64]{1,0}) while(%start), condition=%condition, body=%body
  %outputs = f32[18,64]{1,0:T(8,128)} get-tuple-element(%looped), index=2
  ROOT %copy = f32[18,64]{1,0:T(8,128)} copy(%outputs)
}
"""


def test_bytes_of_a_loop_with_slices_of_its_weights() -> None:
    """Each turn reads one row and the counter, its sine, and writes one row; then all is copied."""
    row = 64 * 4
    turn, condition = (2 * row + 4) + 2 * row + (2 * row + 4), 1 + 4
    copy = 2 * 18 * row
    assert loop_factor(LOOP_TEXT) == pytest.approx(
        (copy + 18 * (turn + condition)) / (copy + turn + condition), rel=1e-3
    )


def test_bytes_of_a_scan_are_those_of_the_unrolled_program() -> None:
    def step(x: jax.Array, weights: jax.Array, unroll: bool) -> jax.Array:
        return jax.lax.scan(lambda x, w: (jnp.sin(x @ w), None), x, weights, unroll=unroll)[0]

    shapes = (jnp.ones((256, 64)), jnp.ones((6, 64, 64)))
    scanned, unrolled = (
        jax.jit(functools.partial(step, unroll=unroll)).lower(*shapes).compile() for unroll in (False, True)
    )
    factor = loop_factor(scanned.as_text())
    assert 4 < factor < 6
    found, expected = (compiled.cost_analysis()["bytes accessed"] for compiled in (scanned, unrolled))
    assert found * factor == pytest.approx(expected, rel=0.1)
