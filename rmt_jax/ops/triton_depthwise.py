"""Depthwise convolution as Pallas kernels for GPUs, by Triton: every number of a map is fetched from memory once.

cuDNN takes about ten times as long as the memory needs, and XLA's sum of shifted products computes what comes before,
such as a GELU, once for every tap. Here a program has some positions and channels, and what the taps see of the map
comes from the multiprocessor's own cache.

Axes: batch, height, width, channels; taps = kernel_height * kernel_width.
"""

import functools
import math
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

Map = Float[Array, "batch height width channels"]
Kernel = Float[Array, "kernel_height kernel_width 1 channels"]
Channels = Float[Array, " channels"]

_TILE = 2048  # numbers of a map that a program works on at a time
_MOST_CHANNELS, _FEWEST_CHANNELS = 64, 16  # of a program
_WARPS = 4
_MOST_TAPS = 9  # whose gradients a program adds up
_STEPS = 32  # tiles of a program that adds up gradients, about


def triton_depthwise(x: Map, kernel: Kernel, bias: Channels, *, interpret: bool = False) -> Map:
    """Stride 1, zero padding that keeps the size, and a bias; sums in float32.

    Args:
        x: the map.
        kernel: float32, odd height and width.
        bias: float32.
        interpret: run without a GPU, slowly, for tests.
    """
    batch, height, width, channels = x.shape
    tile, (rows, columns) = _tile(channels), kernel.shape[:2]
    blocks = pl.cdiv(height * width, tile[0]), pl.cdiv(channels, tile[1])
    y = pl.pallas_call(
        functools.partial(_forward_kernel, (height, width), (rows, columns), tile),
        grid=(*blocks, batch),
        out_shape=jax.ShapeDtypeStruct((batch, height * width, channels), x.dtype),
        compiler_params=plt.CompilerParams(num_warps=_WARPS, num_stages=1),
        interpret=interpret,
        name="depthwise",
    )(x.reshape(batch, -1, channels), kernel.reshape(-1, channels), bias[None])
    return y.reshape(x.shape)


def triton_depthwise_gradients(
    x: Map, dy: Map, kernel_size: tuple[int, int], *, interpret: bool = False
) -> tuple[Kernel, Channels]:
    """(kernel's gradient, bias's gradient), float32.

    Args:
        x: the map that was convolved.
        dy: gradient of the result.
        kernel_size: height and width.
        interpret: run without a GPU, slowly, for tests.
    """
    batch, height, width, channels = x.shape
    tile = _tile(channels)
    rows = kernel_size[0] if math.prod(kernel_size) <= _MOST_TAPS else 1
    of_picture = pl.cdiv(height * width, tile[0])
    pictures = next(size for size in range(min(batch, pl.cdiv(_STEPS, of_picture)), 0, -1) if batch % size == 0)
    chunks, parts, count = batch // pictures, kernel_size[0] // rows, rows * kernel_size[1]
    found = pl.pallas_call(
        functools.partial(_gradient_kernel, (height, width), kernel_size, tile, rows, pictures),
        grid=(pl.cdiv(channels, tile[1]), parts, chunks),
        out_shape=jax.ShapeDtypeStruct((chunks, parts, 1 + count, channels), jnp.float32),
        compiler_params=plt.CompilerParams(num_warps=_WARPS, num_stages=1),
        interpret=interpret,
        name="depthwise_gradient",
    )(*(z.reshape(batch, -1, channels) for z in (x, dy)))
    found = found.sum(axis=0)
    return found[:, 1:].reshape(*kernel_size, 1, channels), found[0, 0]


def _tile(channels: int) -> tuple[int, int]:
    """(positions, channels): as many channels as divide all of them, where it is a power of 2."""
    divisor = min(_MOST_CHANNELS, channels & -channels)
    size = divisor if divisor >= _FEWEST_CHANNELS else _FEWEST_CHANNELS
    return _TILE // size, size


class _Tile:
    """Some positions and channels of a picture, as a program sees them.

    Args:
        size: height and width of the map.
        tile: how many positions and channels.
        channels: of the map.
        block: of the channels.
    """

    def __init__(self, size: tuple[int, int], tile: tuple[int, int], channels: int, block: Array):
        (self._height, self._width), self._tile = size, tile
        self.block = pl.ds(block * tile[1], tile[1])
        self._channels = block * tile[1] + jax.lax.broadcasted_iota(jnp.int32, (1, tile[1]), 1)
        self.has_channels = self._channels < channels

    def load(self, ref: Any, picture: Array, start: Array, down: int | Array, right: int) -> Array:
        """[positions channels] float32: what lies so far below and to the right of each, zeros outside of the map."""
        at = start + jax.lax.broadcasted_iota(jnp.int32, (self._tile[0], 1), 0)
        # Of numbers that are not negative, for which there is no need to round down.
        row, column = (function(at, jnp.int32(self._width)) for function in (jax.lax.div, jax.lax.rem))
        row, column = row + down, column + right
        inside = (row >= 0) & (row < self._height) & (column >= 0) & (column < self._width)
        where = (picture, *jnp.broadcast_arrays(jnp.where(inside, row * self._width + column, 0), self._channels))
        return plt.load(ref.at[where], mask=inside & self.has_channels, other=0).astype(jnp.float32)

    def weight(self, ref: Any, row: int) -> Array:
        """[1 channels] of an operand of the kernel's numbers."""
        where = jnp.full_like(self._channels, row), self._channels
        return plt.load(ref.at[where], mask=self.has_channels, other=0)

    def store(self, ref: Any, picture: Array, start: Array, value: Array) -> None:
        """The part of it that is in the map."""
        at = start + jax.lax.broadcasted_iota(jnp.int32, (self._tile[0], 1), 0)
        mask = (at < self._height * self._width) & self.has_channels
        plt.store(ref.at[picture, pl.ds(start, self._tile[0]), self.block], value.astype(ref.dtype), mask=mask)


def _forward_kernel(
    size: tuple[int, int],
    kernel_size: tuple[int, int],
    tile: tuple[int, int],
    x_ref: Any,
    kernel_ref: Any,
    bias_ref: Any,
    y_ref: Any,
) -> None:
    start, picture = pl.program_id(0) * tile[0], pl.program_id(2)
    part = _Tile(size, tile, x_ref.shape[2], pl.program_id(1))
    total = jnp.broadcast_to(part.weight(bias_ref, 0), tile)
    for tap in range(math.prod(kernel_size)):
        down, right = (at - length // 2 for at, length in zip(divmod(tap, kernel_size[1]), kernel_size, strict=True))
        total += part.load(x_ref, picture, start, down, right) * part.weight(kernel_ref, tap)
    part.store(y_ref, picture, start, total)


def _gradient_kernel(
    size: tuple[int, int],
    kernel_size: tuple[int, int],
    tile: tuple[int, int],
    rows: int,
    pictures: int,
    x_ref: Any,
    dy_ref: Any,
    found_ref: Any,
) -> None:
    """Of the bias and of some rows of the kernel, over some pictures."""
    chunk, of_kernel = pl.program_id(2), pl.program_id(1)
    part = _Tile(size, tile, x_ref.shape[2], pl.program_id(0))
    blocks = pl.cdiv(math.prod(size), tile[0])
    (height, width), count = kernel_size, rows * kernel_size[1]

    def add(step: Array, totals: tuple[Array, ...]) -> tuple[Array, ...]:
        picture = chunk * pictures + jax.lax.div(step, jnp.int32(blocks))
        start = jax.lax.rem(step, jnp.int32(blocks)) * tile[0]
        dy = part.load(dy_ref, picture, start, 0, 0)
        found = [dy]
        for tap in range(count):
            row, column = divmod(tap, width)
            down = of_kernel * rows + row - height // 2
            found.append(part.load(x_ref, picture, start, down, column - width // 2) * dy)
        return tuple(total + one for total, one in zip(totals, found, strict=True))

    zeros = jnp.zeros(tile, jnp.float32)
    totals = jax.lax.fori_loop(0, pictures * blocks, add, (zeros,) * (1 + count))
    for index, total in enumerate(totals):
        at = found_ref.at[chunk, of_kernel, pl.ds(index, 1), part.block]
        plt.store(at, total.sum(axis=0)[None, :], mask=part.has_channels)
