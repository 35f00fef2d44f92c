"""What a kernel of `pallas_kernels` is compiled for: sizes, groups of heads, and where maps lie in scratch memory.

A map goes from [height width channels] to float32 scratch memory of [tiles, rows, 128]: a tile for every 128 channels,
in it the tokens row by row, each row of the map padded to 8 sublanes. Rows of the map are then slices of it, columns
are slices with a stride, which only 32-bit arrays of exactly 128 lanes have.
"""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from rmt_jax.ops.pallas_heads import LANES, SUBLANES, HeadStack, round_up

Ref = Any  # of a block of an operand, or of scratch memory
Tiles = list[Array]  # [rows 128] each, float32


@dataclasses.dataclass(frozen=True)
class Group:
    """Heads that are computed at once: those of one tile."""

    log_rates: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a kernel is compiled for.

    Attributes:
        height: of a map.
        width: of a map.
        channels: of a map.
        log_rates: log(gamma) of each head.
        dtype: of q, k and v, and of the operands of products.
        full: over all tokens rather than along one axis after the other.
    """

    height: int
    width: int
    channels: int
    log_rates: tuple[float, ...]
    dtype: jnp.dtype
    full: bool

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return self.channels // len(self.log_rates)

    @property
    def padded_height(self) -> int:
        """Of a column in scratch memory."""
        return round_up(self.height, SUBLANES)

    @property
    def padded_width(self) -> int:
        """Of a row in scratch memory."""
        return round_up(self.width, SUBLANES)

    @property
    def tiles(self) -> int:
        """Of 128 channels."""
        return -(-self.channels // LANES)

    @property
    def groups(self) -> tuple[Group, ...]:
        """All heads."""
        heads = LANES // self.head_dim
        return tuple(Group(self.log_rates[tile * heads : (tile + 1) * heads]) for tile in range(self.tiles))

    @property
    def tokens(self) -> int:
        """Of a map in scratch memory."""
        return self.padded_height * self.padded_width

    def stack(self, group: Group, length: int) -> HeadStack:
        """How a group's heads are stacked."""
        return HeadStack(len(group.log_rates), self.head_dim, length)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Of what is attended to, padded: of all tokens, or of a row and of a column."""
        return (self.height * self.padded_width,) if self.full else (self.padded_width, self.padded_height)

    @property
    def decay_shapes(self) -> list[tuple[int, int, int]]:
        """[groups rows columns] for each of the lengths, of which a group may use less."""
        stacks = [[self.stack(group, length) for group in self.groups] for length in self.lengths]
        return [(len(same), max(x.rows for x in same), max(x.columns for x in same)) for same in stacks]

    def map_shapes(self, backward: bool) -> list[tuple[int, int, int]]:
        """Of the maps in scratch memory."""
        maps = 0 if self.full else 4 if backward else 3
        return [(self.tiles, self.tokens, LANES)] * maps


class Tables(NamedTuple):
    """What rotation needs, the same for all pictures.

    Attributes:
        cos: [tokens 128] of every channel's phase, the same for all tiles.
        sin: the same.
        partner: [128 128], brings to every channel the other one of its pair, with the sign that it is added with.
            A product with it is exact and leaves the units that move lanes free.
    """

    cos: Ref
    sin: Ref
    partner: Ref
