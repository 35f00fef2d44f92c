"""LayerNorm's gradients as a Pallas kernel for GPUs, by Triton: map and gradient are read once.

XLA makes four passes of it: one for the map, which takes six times as long as its bytes, one that writes products in
float32, and one each for the sums of scale and bias. Here a program has some rows, keeps them in registers, and adds up
its part of the sums on the way.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jaxtyping import Float

try:
    from jax.experimental.pallas import triton as plt
except ImportError:  # a later jax, see `formulations`
    plt = None  # type: ignore[assignment]

Map = Float[Array, "*axes channels"]
Channels = Float[Array, " channels"]

_TILE = 2048  # numbers of a map that a program works on at a time
_WARPS = 4
_FEWEST_STEPS = 4  # tiles of a program: each program writes sums of its own
_MOST_PROGRAMS = 1056  # eight for each multiprocessor of an H100


def triton_layer_norm_gradients(
    x: Map, scale: Channels, dy: Map, residual: Map, *, epsilon: float, interpret: bool = False
) -> tuple[Map, Channels, Channels]:
    """(x's gradient in x's type, the scale's, the bias's in float32), computed in float32.

    Args:
        x: what was normalised over its channels.
        scale: float32.
        dy: gradient of the result.
        residual: what else is x's gradient, which is added.
        epsilon: added to the variance.
        interpret: run without a GPU, slowly, for tests.
    """
    channels = x.shape[-1]
    rows = [z.reshape(-1, channels) for z in (x, dy, residual)]
    width = pl.next_power_of_2(channels)
    tile = max(1, _TILE // width), width
    tiles = pl.cdiv(len(rows[0]), tile[0])
    steps = max(_FEWEST_STEPS, pl.cdiv(tiles, _MOST_PROGRAMS))
    programs = pl.cdiv(tiles, steps)
    dx, sums = pl.pallas_call(
        functools.partial(_kernel, tile, steps, epsilon),
        grid=(programs,),
        out_shape=(
            jax.ShapeDtypeStruct(rows[0].shape, x.dtype),
            jax.ShapeDtypeStruct((programs, 2, channels), jnp.float32),
        ),
        compiler_params=plt.CompilerParams(num_warps=_WARPS, num_stages=1),
        interpret=interpret,
        name="layer_norm_gradients",
    )(scale[None], *rows)
    dscale, dbias = sums.sum(axis=0)
    return dx.reshape(x.shape), dscale, dbias


def _kernel(
    tile: tuple[int, int],
    steps: int,
    epsilon: float,
    scale_ref: Any,
    x_ref: Any,
    dy_ref: Any,
    residual_ref: Any,
    dx_ref: Any,
    sums_ref: Any,
) -> None:
    (rows, channels), program = dx_ref.shape, pl.program_id(0)
    columns = pl.ds(0, tile[1])
    has_channels = jax.lax.broadcasted_iota(jnp.int32, (1, tile[1]), 1) < channels
    scale = plt.load(scale_ref.at[pl.ds(0, 1), columns], mask=has_channels, other=0)

    def mean(z: Array) -> Array:
        return z.sum(axis=1, keepdims=True) * (1 / channels)

    def add(step: Array, totals: tuple[Array, Array]) -> tuple[Array, Array]:
        start = (program * steps + step) * tile[0]
        at = start + jax.lax.broadcasted_iota(jnp.int32, (tile[0], 1), 0)
        inside, where = (at < rows) & has_channels, (pl.ds(start, tile[0]), columns)
        x, dy, residual = (
            plt.load(ref.at[where], mask=inside, other=0).astype(jnp.float32) for ref in (x_ref, dy_ref, residual_ref)
        )
        centred = jnp.where(has_channels, x - mean(x), 0)
        factor = jax.lax.rsqrt(mean(centred * centred) + epsilon)
        normal, dnormal = centred * factor, dy * scale
        dx = residual + factor * (dnormal - mean(dnormal) - normal * mean(dnormal * normal))
        plt.store(dx_ref.at[where], dx.astype(dx_ref.dtype), mask=inside)
        return totals[0] + dy * normal, totals[1] + dy

    zeros = jnp.zeros(tile, jnp.float32)
    totals = jax.lax.fori_loop(0, steps, add, (zeros, zeros))
    for index, total in enumerate(totals):
        at = sums_ref.at[program, pl.ds(index, 1), columns]
        plt.store(at, total.sum(axis=0)[None, :], mask=has_channels)
