"""The Pallas kernels of `pallas_ffn`, and where tokens lie in them.

Maps come as [height width pictures channels], as XLA has them in memory for 128 channels and more. In scratch memory
the tokens of a grid step lie one after the other in the same order, a row of zeros before the map and after it and one
column of zeros between rows. So the neighbours of all tokens are at fixed distances, which are multiples of what a
register holds, and those beyond an edge are zero. Chunks of 128 hidden channels depend on no others until the second
layer adds them up.

Axes: tokens (with the zeros), block of tokens, channels, chunks of 128 hidden channels, lanes.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jaxtyping import Float

from rmt_jax.ops.pallas_heads import LANES, SUBLANES, product, round_up

Ref = Any  # of a block of an operand, or of scratch memory
Block = Float[Array, "block lanes"]

TAPS = 9  # of the depthwise convolution, 3x3
ROWS = 16  # of `Weights.channels`
_DW_BIAS, _FC1_BIAS = TAPS, TAPS + 1
PICTURES = SUBLANES  # of a grid step
_BLOCK_TOKENS = 500  # at most, but for a single row


class Weights(NamedTuple):
    """The weights of a feed-forward branch as the kernels take them, or their gradients.

    Attributes:
        fc1: [chunks channels 128].
        fc2: [chunks 128 channels].
        channels: [chunks 16 128] float32, by hidden channel: taps of the depthwise convolution row by row, its bias,
            the bias of the first layer, zeros.
        bias: [1 channels] float32, of the second layer.
    """

    fc1: Any
    fc2: Any
    channels: Any
    bias: Any


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a kernel is compiled for.

    Attributes:
        height: of a map.
        width: of a map.
        channels: of a map.
        chunks: of 128 hidden channels.
        dtype: of the map, and of the operands of products.
        epsilon: of the normalisation.
    """

    height: int
    width: int
    channels: int
    chunks: int
    dtype: jnp.dtype
    epsilon: float = 0.0

    @property
    def row(self) -> int:
        """Tokens of a row with the column of zeros."""
        return (self.width + 1) * PICTURES

    @property
    def block_rows(self) -> int:
        """Rows worked on at once."""
        sizes = [size for size in range(1, self.height + 1) if self.height % size == 0]
        return max(size for size in sizes if size == 1 or size * self.row <= _BLOCK_TOKENS)

    @property
    def block(self) -> int:
        """Tokens worked on at once."""
        return self.block_rows * self.row

    @property
    def tokens(self) -> int:
        """Of scratch memory, which begins and ends with the neighbours of the first and of the last token."""
        return (self.height + 2) * self.row + 2 * PICTURES

    def scratch_shapes(self, *, backward: bool) -> list[tuple[int, int]]:
        """[tokens channels] of what is normalised and of what is summed, going back also of what comes back; then
        [tokens 128] of the hidden layer, going back also of what comes back to it and of the slope.
        """
        return [(self.tokens, self.channels)] * (2 + backward) + [(self.tokens, LANES)] * (1 + 2 * backward)

    def needed_memory(self, *, backward: bool, buffers: int) -> int:
        """Bytes of vector memory: maps, weights and their gradients, scratch, and what registers cannot hold."""
        wide, item = round_up(self.channels, LANES), self.dtype.itemsize
        blocks = buffers * (2 + backward) * self.height * self.width * PICTURES * wide * item
        products, rest = self.chunks * 2 * wide * LANES, self.chunks * ROWS * LANES
        weights = products * item + rest * 4 + backward * (products + rest) * 4
        scratch = 4 * sum(tokens * round_up(lanes, LANES) for tokens, lanes in self.scratch_shapes(backward=backward))
        values = 4 * LANES * (12 * self.block + 4 * wide)
        return blocks + weights + scratch + values


def token_mask(plan: Plan) -> Float[Array, "block lanes"]:
    """Of a block: 1 for tokens, 0 for the column of zeros."""
    column = jnp.arange(plan.block) // PICTURES % (plan.width + 1)
    return jnp.broadcast_to((column < plan.width)[:, None], (plan.block, LANES)).astype(jnp.float32)


def forward(
    plan: Plan,
    x: Ref,
    factor: Ref,
    mask: Ref,
    fc1: Ref,
    fc2: Ref,
    channels: Ref,
    bias: Ref,
    y: Ref,
    normal: Ref,
    total: Ref,
    hidden: Ref,
) -> None:
    """x + factor * FFN(normalised x); operands, the result, then scratch memory."""
    _at_first(lambda: _clear(normal, hidden))
    total[...] = jnp.zeros_like(total)

    def load(h: Array) -> None:
        _set_row(plan, normal, h, _normalise(plan, x[h])[0])

    def chunk(c: Array) -> None:
        def activate(here: Array) -> None:
            z = product(_at(plan, normal, here).astype(plan.dtype), fc1[c], (1, 0)) + _row(channels, c, _FC1_BIAS)
            hidden[_tokens(plan, here)] = _gelu(z)[0] * mask[...]

        def project(here: Array) -> None:
            h = _at(plan, hidden, here) + _convolve(_around(plan, hidden, here), channels, c)
            h = (h + _row(channels, c, _DW_BIAS)).astype(plan.dtype)
            total[_tokens(plan, here)] += product(h, fc2[c], (1, 0))

        _for_each_block(plan, activate)
        _for_each_block(plan, project)

    def store(h: Array) -> None:
        branch = _get_row(plan, total, h) + bias[...]
        y[h] = (x[h].astype(jnp.float32) + factor[...] * branch).astype(y.dtype)

    _loop(plan.height, load)
    _loop(plan.chunks, chunk)
    _loop(plan.height, store)


def backward(
    plan: Plan,
    x: Ref,
    dy: Ref,
    factor: Ref,
    mask: Ref,
    fc1: Ref,
    fc2: Ref,
    channels: Ref,
    bias: Ref,
    dx: Ref,
    dfc1: Ref,
    dfc2: Ref,
    dchannels: Ref,
    dbias: Ref,
    normal: Ref,
    dnormal: Ref,
    dbranch: Ref,
    hidden: Ref,
    dhidden: Ref,
    slope: Ref,
) -> None:
    """Gradients of x and, added up over the steps of a core, of the weights."""
    del bias
    _at_first(lambda: _clear(normal, dbranch, hidden, dhidden, dfc1, dfc2, dchannels, dbias))
    dnormal[...] = jnp.zeros_like(dnormal)

    def load(h: Array) -> None:
        _set_row(plan, normal, h, _normalise(plan, x[h])[0])
        comes_back = dy[h].astype(jnp.float32) * factor[...]
        _set_row(plan, dbranch, h, comes_back)
        dbias[0] += comes_back.sum(axis=0).sum(axis=0, keepdims=True)

    def chunk(c: Array) -> None:
        def activate(here: Array) -> None:
            z = product(_at(plan, normal, here).astype(plan.dtype), fc1[c], (1, 0)) + _row(channels, c, _FC1_BIAS)
            activated, slope_here = _gelu(z)
            hidden[_tokens(plan, here)] = activated * mask[...]
            slope[_tokens(plan, here)] = slope_here * mask[...]
            dhidden[_tokens(plan, here)] = product(_at(plan, dbranch, here).astype(plan.dtype), fc2[c], (1, 1))

        def pull(here: Array) -> None:
            around, dh = _around(plan, hidden, here), _at(plan, dhidden, here)
            projected = around[TAPS // 2] + _convolve(around, channels, c) + _row(channels, c, _DW_BIAS)
            comes_back = _at(plan, dbranch, here).astype(plan.dtype)
            dfc2[0, c] += product(projected.astype(plan.dtype), comes_back, (0, 0))
            for tap, seen in enumerate(around):
                _add_row(dchannels, c, tap, seen * dh)
            _add_row(dchannels, c, _DW_BIAS, dh)
            # What comes back through a convolution is convolved with the kernel turned by 180 degrees.
            dz = (dh + _convolve(_around(plan, dhidden, here)[::-1], channels, c)) * _at(plan, slope, here)
            _add_row(dchannels, c, _FC1_BIAS, dz)
            dz = dz.astype(plan.dtype)
            dfc1[0, c] += product(_at(plan, normal, here).astype(plan.dtype), dz, (0, 0))
            dnormal[_tokens(plan, here)] += product(dz, fc1[c], (1, 1))

        _for_each_block(plan, activate)
        _for_each_block(plan, pull)

    def store(h: Array) -> None:
        normalised, scale = _normalise(plan, x[h])
        dn = _get_row(plan, dnormal, h)
        along = (dn * normalised).mean(axis=-1, keepdims=True)
        through = scale * (dn - dn.mean(axis=-1, keepdims=True) - normalised * along)
        dx[h] = (dy[h].astype(jnp.float32) + through).astype(dx.dtype)

    _loop(plan.height, load)
    _loop(plan.chunks, chunk)
    _loop(plan.height, store)


def _normalise(plan: Plan, x: Array) -> tuple[Array, Array]:
    """(x with mean 0 and variance 1 over the channels, what its distance from the mean was multiplied with)."""
    x = x.astype(jnp.float32)
    centred = x - x.mean(axis=-1, keepdims=True)
    scale = jax.lax.rsqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + plan.epsilon)
    return centred * scale, scale


def _gelu(z: Block) -> tuple[Block, Block]:
    """(GELU, its derivative)."""
    share = 0.5 * (1 + jax.lax.erf(z * math.sqrt(0.5)))
    return z * share, share + z * jnp.exp(-0.5 * z * z) * (1 / math.sqrt(2 * math.pi))


def _around(plan: Plan, map: Ref, here: Array) -> list[Block]:
    """A block as each tap of a 3x3 kernel sees it, row by row."""
    return [_at(plan, map, here, rows, columns) for rows in (-1, 0, 1) for columns in (-1, 0, 1)]


def _convolve(around: list[Block], channels: Ref, c: Array) -> Block:
    return sum(
        (seen * _row(channels, c, tap) for tap, seen in enumerate(around[1:], 1)), around[0] * _row(channels, c, 0)
    )


def _at(plan: Plan, map: Ref, here: Array, rows: int = 0, columns: int = 0) -> Block:
    """A block, or the neighbours of its tokens so many rows further down and columns to the right."""
    return map[_tokens(plan, here, rows, columns)]


def _tokens(plan: Plan, here: Array, rows: int = 0, columns: int = 0) -> Any:
    start = here * plan.block + (1 + rows) * plan.row + (1 + columns) * PICTURES
    return pl.ds(pl.multiple_of(start, PICTURES), plan.block)


def _line(plan: Plan, h: Array) -> Any:
    """The tokens of row h."""
    return pl.ds(pl.multiple_of((1 + h) * plan.row + PICTURES, PICTURES), plan.width * PICTURES)


def _get_row(plan: Plan, map: Ref, h: Array) -> Float[Array, "width pictures channels"]:
    return map[_line(plan, h)].reshape(plan.width, PICTURES, -1)


def _set_row(plan: Plan, map: Ref, h: Array, row: Float[Array, "width pictures channels"]) -> None:
    map[_line(plan, h)] = row.reshape(plan.width * PICTURES, -1)


def _row(channels: Ref, c: Array, row: int) -> Float[Array, "1 lanes"]:
    return channels[c, row : row + 1]


def _add_row(gradients: Ref, c: Array, row: int, x: Block) -> None:
    gradients[0, c, row : row + 1] += x.sum(axis=0, keepdims=True)


def _clear(*refs: Ref) -> None:
    for ref in refs:
        ref[...] = jnp.zeros_like(ref)


def _at_first(do: Callable[[], None]) -> None:
    """In the first step of each core."""
    pl.when(pl.program_id(1) == 0)(do)


def _loop(count: int, do: Callable[[Array], None]) -> None:
    jax.lax.fori_loop(0, count, lambda i, _: do(i), None)


def _for_each_block(plan: Plan, do: Callable[[Array], None]) -> None:
    _loop(plan.height // plan.block_rows, do)
