"""Retention as one Pallas TPU kernel a direction: q, k and v go in as projected, and nothing between comes out.

XLA writes the rotated queries and keys, the logits and the weights of every head to memory and reads them again. The
kernels hold a whole map in the chip's vector memory, so only q, k, v and the result cross the chip's boundary; the
backward kernel computes everything again from q, k and v. `pallas_heads` has the mathematics of one axis,
`pallas_kernels` the kernels.

Axes: batch, height, width, channels = heads * dim.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.typing import DTypeLike
from jaxtyping import Float

from rmt_jax.ops import pallas_chip
from rmt_jax.ops.pallas_chip import MIB
from rmt_jax.ops.pallas_heads import LANES, round_up
from rmt_jax.ops.pallas_kernels import backward_axes, backward_full, forward_axes, forward_full
from rmt_jax.ops.pallas_plan import Plan, Tables
from rmt_jax.ops.retention import Heads, rotary_phase

Map = Float[Array, "batch height width channels"]

_STEP_BYTES = MIB // 2  # of one operand: enough that a step takes longer than its start


def fused_retention_forward(heads: Heads, q: Map, k: Map, v: Map, *, interpret: bool = False) -> Map:
    """Rotation, scaling and retention in one kernel.

    Args:
        heads: how the channels attend.
        q: queries as projected, neither rotated nor scaled, each head's channels ordered by `pairs_to_halves`.
        k: keys as projected, ordered in the same way.
        v: values, of q's type: float32 or bfloat16. Logits, softmax and sums are float32.
        interpret: run without a TPU, slowly, for tests.

    Returns:
        A map of v's shape and type.

    Raises:
        ValueError: shapes or types differ, or heads that kernels cannot work with.
    """
    return _call(_plan(heads, q, k, v), interpret, q, k, v)[0]


def fused_retention_backward(
    heads: Heads, q: Map, k: Map, v: Map, dout: Map, *, interpret: bool = False
) -> tuple[Map, Map, Map]:
    """Gradients of q, k and v from that of the result, of which nothing else is needed."""
    dq, dk, dv = _call(_plan(heads, q, k, v), interpret, q, k, v, dout)
    return dq, dk, dv


def _plan(heads: Heads, q: Array, k: Array, v: Array) -> Plan:
    if not (q.shape == k.shape == v.shape and q.dtype == k.dtype == v.dtype):
        raise ValueError(f"q, k and v differ: {[(x.shape, str(x.dtype)) for x in (q, k, v)]}.")
    if q.dtype not in (jnp.float32, jnp.bfloat16):
        raise ValueError(f"Expected float32 or bfloat16, got {q.dtype}.")
    _, height, width, channels = q.shape
    if not _heads_fill_lanes(channels, heads):
        raise ValueError(
            f"{channels} channels for {len(heads.log_rates)} heads: the kernels work with heads of 2, 4, 8, 16, 32, 64 "
            f"or {LANES} channels."
        )
    return Plan(height, width, channels, heads.log_rates, jnp.dtype(q.dtype), not heads.decomposed)


def _heads_fill_lanes(channels: int, heads: Heads) -> bool:
    """Whether no head straddles two tiles."""
    dim, rest = divmod(channels, len(heads.log_rates))
    return rest == 0 and dim % 2 == 0 and LANES % dim == 0


def _call(plan: Plan, interpret: bool, *maps: Map) -> tuple[Map, ...]:
    """The forward kernel of q, k and v, the backward one of q, k, v and the gradient of the result."""
    backward = len(maps) == 4
    results = 3 if backward else 1
    step = _step(plan, backward, len(maps[0]))
    needed = _needed_memory(plan, backward, step)
    tables = _tables(plan)
    kernels = (forward_full, backward_full) if plan.full else (forward_axes, backward_axes)

    def kernel(*refs: Any) -> None:
        refs, operands = refs[len(tables) :], Tables(*refs[: len(tables)])
        decays = len(plan.decay_shapes)
        kernels[backward](
            plan,
            step.logits,
            operands,
            refs[: len(maps)],
            refs[len(maps) : len(maps) + results],
            refs[len(maps) + results : -decays],
            *refs[-decays:],
        )

    def whole(table: Array) -> pl.BlockSpec:
        return pl.BlockSpec(table.shape, lambda _: (0,) * table.ndim, pipeline_mode=pl.Buffered(1))

    block = pl.BlockSpec(
        (step.pictures, *maps[0].shape[1:]), lambda i: (i, 0, 0, 0), pipeline_mode=pl.Buffered(step.buffers)
    )
    return pl.pallas_call(
        kernel,
        grid=(len(maps[0]) // step.pictures,),
        in_specs=[*map(whole, tables), *[block] * len(maps)],
        out_specs=[block] * results,
        out_shape=[jax.ShapeDtypeStruct(maps[0].shape, maps[0].dtype)] * results,
        scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in plan.map_shapes(backward) + plan.decay_shapes],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",),
            vmem_limit_bytes=min(needed + needed // 4 + MIB, pallas_chip.chip_memory()),
        ),
        interpret=interpret,
        name=f"retention_{'full' if plan.full else 'axes'}_{'backward' if backward else 'forward'}",
    )(*tables, *maps)


def _tables(plan: Plan) -> Tables:
    """For the rotation."""
    phase = rotary_phase(plan.height, plan.width, plan.head_dim)
    half = plan.head_dim // 2
    padding = (0, 0), (0, plan.padded_width - plan.width), (0, 0)

    def table(of_pairs: Array) -> Array:
        return jnp.pad(jnp.tile(of_pairs, LANES // half), padding).reshape(-1, LANES)

    channel, other = jnp.arange(LANES)[None], jnp.arange(LANES)[:, None]
    first = channel % plan.head_dim < half
    is_partner = other == jnp.where(first, channel + half, channel - half)
    partner = jnp.where(is_partner, jnp.where(first, -1, 1), 0).astype(plan.dtype)
    return Tables(table(jnp.cos(phase)), table(jnp.sin(phase)), partner)


def fits(height: int, width: int, channels: int, dtype: DTypeLike, heads: Heads) -> bool:
    """Whether the kernels can work with a map: whole, with all that they make of it, in the chip's vector memory.

    Maps that do not fit, such as a detector's of 200x336, are for `ops.retention`.

    Args:
        height: of the map.
        width: of the map.
        channels: of the map.
        dtype: of q, k and v.
        heads: of the channels.
    """
    if not _heads_fill_lanes(channels, heads):
        return False
    plan = Plan(height, width, channels, heads.log_rates, jnp.dtype(dtype), not heads.decomposed)
    return _needed_memory(plan, True, _TIGHT) <= pallas_chip.chip_memory()


class _Step(NamedTuple):
    """What is in the chip's vector memory at a time.

    Attributes:
        pictures: of a step.
        buffers: blocks of each operand and result; with two, one moves while the other is worked on.
        logits: of the rows or columns that are worked on at once.
    """

    pictures: int
    buffers: int
    logits: int


_ROOMY, _TIGHT = _Step(pictures=8, buffers=2, logits=2**17), _Step(pictures=1, buffers=1, logits=2**15)


def _step(plan: Plan, backward: bool, batch: int) -> _Step:
    """The best that fits: pictures until a step takes longer than its start."""
    most = min(_ROOMY.pictures, -(-_STEP_BYTES // _block_bytes(plan)))
    logits = _ROOMY.logits if plan.dtype == jnp.bfloat16 else _TIGHT.logits
    steps = [
        _ROOMY._replace(pictures=pictures, logits=logits) for pictures in range(most, 0, -1) if batch % pictures == 0
    ]
    for step in [*steps, _TIGHT]:
        if _needed_memory(plan, backward, step) <= pallas_chip.chip_memory():
            return step
    raise ValueError(
        f"A map of {plan.height}x{plan.width}x{plan.channels} does not fit into the chip's vector memory; ask `fits` "
        f"first and use `ops.retention` for it."
    )


def _block_bytes(plan: Plan) -> int:
    """Of one map of an operand in the chip's memory, which holds tiles of 8 rows and 128 channels."""
    return plan.height * plan.padded_width * plan.tiles * LANES * plan.dtype.itemsize


def _needed_memory(plan: Plan, backward: bool, step: _Step) -> int:
    """Bytes of vector memory of a kernel: blocks, tables, scratch and what registers cannot hold."""
    blocks = step.buffers * (7 if backward else 4) * step.pictures * _block_bytes(plan)
    tables = 2 * 4 * plan.tokens * LANES
    decays = [_padded_size(shape) for shape in plan.decay_shapes]
    scratch = 4 * (sum(_padded_size(shape) for shape in plan.map_shapes(backward)) + sum(decays))
    # By what the compiler says it uses: three arrays of the logits, and more where it takes float32 operands apart.
    apart = plan.dtype == jnp.float32
    values = 3 * 4 * max(step.logits, *decays) * (1 + apart) + MIB * (4 if apart else 0.25)
    return blocks + tables + scratch + int(values)


def _padded_size(shape: tuple[int, ...]) -> int:
    return math.prod(shape[:-1]) * round_up(shape[-1], LANES)
