"""The feed-forward branch as one Pallas TPU kernel a direction: a map goes in, nothing of its hidden layer comes out.

The hidden layer is three or four times as wide as the map, and XLA writes it to memory and reads it again several
times, with the backward pass some twenty times. The kernels hold 128 of its channels at a time in the chip's vector
memory; the backward kernel computes everything again from the map.

Axes: batch, height, width, channels, hidden.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.typing import DTypeLike
from jaxtyping import Float

from rmt_jax.ops import pallas_chip
from rmt_jax.ops.pallas_chip import MIB
from rmt_jax.ops.pallas_ffn_kernels import PICTURES, ROWS, TAPS, Plan, Weights, backward, forward, token_mask
from rmt_jax.ops.pallas_heads import LANES, round_up

Map = Float[Array, "batch height width channels"]
Factor = Float[Array, " batch"]


def pack(
    fc1_kernel: Float[Array, "channels hidden"],
    fc1_bias: Float[Array, " hidden"],
    dw_kernel: Float[Array, "3 3 1 hidden"],
    dw_bias: Float[Array, " hidden"],
    fc2_kernel: Float[Array, "hidden channels"],
    fc2_bias: Float[Array, " channels"],
) -> Weights:
    """Weights in the kernels' layout; hidden channels that are not there are zero, before and after a GELU."""
    channels, hidden = fc1_kernel.shape
    chunks = -(-hidden // LANES)
    missing = chunks * LANES - hidden
    by_channel = jnp.concatenate([dw_kernel.reshape(TAPS, hidden), dw_bias[None], fc1_bias[None]])
    by_channel = jnp.pad(by_channel, ((0, ROWS - len(by_channel)), (0, missing)))
    return Weights(
        jnp.pad(fc1_kernel, ((0, 0), (0, missing))).reshape(channels, chunks, LANES).transpose(1, 0, 2),
        jnp.pad(fc2_kernel, ((0, missing), (0, 0))).reshape(chunks, LANES, channels),
        by_channel.reshape(ROWS, chunks, LANES).transpose(1, 0, 2),
        fc2_bias[None],
    )


def fused_ffn_forward(x: Map, factor: Factor, weights: Weights, epsilon: float, *, interpret: bool = False) -> Map:
    """x + factor * FFN(normalised x).

    Args:
        x: float32 or bfloat16. What is normalised, the hidden layer and all sums are float32.
        factor: float32, of each picture, as drop path has it.
        weights: of `pack`, float32.
        epsilon: of the normalisation.
        interpret: run without a TPU, slowly, for tests.

    Raises:
        ValueError: another type, or a map that does not fit into the chip's vector memory.
    """
    return _call(_plan(x, weights, epsilon), forward, interpret, (x,), factor, weights, ())[0]


def fused_ffn_backward(
    x: Map, factor: Factor, weights: Weights, dy: Map, epsilon: float, *, interpret: bool = False
) -> tuple[Map, Weights]:
    """Gradients of x and of the weights from that of the result; `factor` has none."""
    shapes = tuple(leaf.shape for leaf in weights)
    dx, *of_cores = _call(_plan(x, weights, epsilon), backward, interpret, (x, dy), factor, weights, shapes)
    return dx, Weights(*(parts.sum(axis=0) for parts in of_cores))


def ffn_fits(height: int, width: int, channels: int, hidden: int, dtype: DTypeLike) -> bool:
    """Whether the kernels are for maps of these sizes: they can hold them whole in the chip's vector memory.

    They are not for fewer than 128 channels. XLA has such maps in memory with the pictures innermost, and turning them
    round costs what the kernels save forward (docs/performance.md).
    """
    return channels >= LANES and _fits(Plan(height, width, channels, -(-hidden // LANES), jnp.dtype(dtype)), buffers=1)


def _fits(plan: Plan, buffers: int) -> bool:
    return plan.needed_memory(backward=True, buffers=buffers) <= pallas_chip.chip_memory()


def _plan(x: Map, weights: Weights, epsilon: float) -> Plan:
    if x.dtype not in (jnp.float32, jnp.bfloat16):
        raise ValueError(f"Expected float32 or bfloat16, got {x.dtype}.")
    _, height, width, channels = x.shape
    plan = Plan(height, width, channels, len(weights.fc1), jnp.dtype(x.dtype), epsilon)
    if not _fits(plan, buffers=1):
        raise ValueError(
            f"{PICTURES} maps of {height}x{width}x{channels} with {plan.chunks * LANES} hidden channels do not fit "
            f"into the chip's vector memory; ask `ffn_fits` first."
        )
    return plan


def _call(
    plan: Plan,
    kernel: Callable[..., None],
    interpret: bool,
    maps: tuple[Map, ...],
    factor: Factor,
    weights: Weights,
    gradients: tuple[tuple[int, ...], ...],
) -> Sequence[Array]:
    """The kernel's results: a map, and sums of the shapes of `gradients`, those of each core apart."""
    batch, height, width, channels = maps[0].shape
    whole_batch = round_up(batch, PICTURES)
    steps = whole_batch // PICTURES
    cores = 2 if steps % 2 == 0 else 1  # of v4 and v5p; on a chip of one core one comes after the other
    buffers = 2 if _fits(plan, 2) else 1
    needed = plan.needed_memory(backward=bool(gradients), buffers=buffers)

    def of_step(*axes: int, before: int = 0) -> pl.BlockSpec:
        """Of an array [*before batch *after], the pictures of a step."""
        shape = (*axes[:before], PICTURES, *axes[before:])
        zeros = (0,) * before, (0,) * (len(axes) - before)

        def index(core: Array, step: Array) -> tuple[Any, ...]:
            return (*zeros[0], core * (steps // cores) + step, *zeros[1])

        return pl.BlockSpec(shape, index, pipeline_mode=pl.Buffered(buffers))

    def whole(array: Array) -> pl.BlockSpec:
        return pl.BlockSpec(array.shape, lambda *_: (0,) * array.ndim, pipeline_mode=pl.Buffered(1))

    def of_core(shape: tuple[int, ...]) -> pl.BlockSpec:
        return pl.BlockSpec((1, *shape), lambda core, _: (core, *[0] * len(shape)), pipeline_mode=pl.Buffered(1))

    # Pictures between positions and channels, which is how XLA has maps in memory: nothing is moved.
    missing = whole_batch - batch
    turned = [jnp.pad(x.transpose(1, 2, 0, 3), ((0, 0), (0, 0), (0, missing), (0, 0))) for x in maps]
    of_pictures = jnp.broadcast_to(jnp.pad(factor, (0, missing))[:, None], (whole_batch, channels))
    fixed: list[Any] = [token_mask(plan), *_for_products(plan, weights)]
    map_spec = of_step(height, width, channels, before=2)
    y, *sums = pl.pallas_call(
        functools.partial(kernel, plan),
        grid=(cores, steps // cores),
        in_specs=[*[map_spec] * len(maps), of_step(channels), *map(whole, fixed)],
        out_specs=[map_spec, *map(of_core, gradients)],
        out_shape=[
            jax.ShapeDtypeStruct(turned[0].shape, turned[0].dtype),
            *(jax.ShapeDtypeStruct((cores, *shape), jnp.float32) for shape in gradients),
        ],
        scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in plan.scratch_shapes(backward=bool(gradients))],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"),
            vmem_limit_bytes=min(needed + needed // 4 + MIB, pallas_chip.chip_memory()),
        ),
        cost_estimate=_cost(maps, weights, backward=bool(gradients)),
        interpret=interpret,
        name=f"ffn_{kernel.__name__}",
    )(*turned, of_pictures, *fixed)
    return [y.transpose(2, 0, 1, 3)[:batch], *sums]


def _cost(maps: tuple[Map, ...], weights: Weights, *, backward: bool) -> pl.CostEstimate:
    """For the compiler, and for whoever counts operations."""
    batch, height, width, _ = maps[0].shape
    tokens, products = batch * height * width, 5 if backward else 2  # one of the five is computed again
    return pl.CostEstimate(
        flops=2 * tokens * products * weights.fc1.size,
        transcendentals=tokens * (2 if backward else 1) * weights.fc1[:, 0].size,
        bytes_accessed=(len(maps) + 1) * maps[0].nbytes + sum(leaf.nbytes for leaf in weights) * (2 if backward else 1),
    )


def _for_products(plan: Plan, weights: Weights) -> Weights:
    """The operands of products in the map's type."""
    return weights._replace(fc1=weights.fc1.astype(plan.dtype), fc2=weights.fc2.astype(plan.dtype))
