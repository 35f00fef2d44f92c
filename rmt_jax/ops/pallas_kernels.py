"""The Pallas kernels of `pallas_retention`: one grid step holds a few pictures whole in the chip's memory.

A map goes from [height width channels] to float32 scratch memory of [tiles, rows, 128]: a tile for every 128 channels,
in it the tokens row by row, each row of the map padded to 8 sublanes. Rows of the map are then slices of it, columns
are slices with a stride, which only 32-bit arrays of exactly 128 lanes have.

Axes: pictures of a step, height, width, channels, tiles.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl

from rmt_jax.ops.pallas_heads import (
    LANES,
    SUBLANES,
    Attention,
    HeadStack,
    attend,
    attend_backward,
    decay_logits,
    product,
    round_up,
)

Ref = Any  # of a block of an operand, or of scratch memory
Tiles = list[Array]  # [rows 128] each, float32

_AT_ONCE = 14  # rows or columns that one iteration works on at most: while one waits for a unit, others use the rest


@dataclasses.dataclass(frozen=True)
class Group:
    """Heads that are computed at once: those of one tile, or all where heads straddle tiles."""

    tiles: slice
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
        if LANES % self.head_dim:
            return (Group(slice(0, self.tiles), self.log_rates),)
        heads = LANES // self.head_dim
        return tuple(
            Group(slice(tile, tile + 1), self.log_rates[tile * heads : (tile + 1) * heads])
            for tile in range(self.tiles)
        )

    @property
    def table_tiles(self) -> int:
        """Tiles of the rotation's tables: one where all tiles hold the same angles."""
        return self.tiles if LANES % self.head_dim else 1

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
        cos: [tiles tokens 128] of every channel's phase, see `Plan.table_tiles`.
        sin: the same.
        partner: [128 128], brings to every channel the other one of its pair, with the sign that it is added with.
            A product with it is exact and leaves the units that move lanes free.
    """

    cos: Ref
    sin: Ref
    partner: Ref


def forward_axes(
    plan: Plan,
    logits: int,
    tables: Tables,
    operands: Sequence[Ref],
    results: Sequence[Ref],
    scratch: Sequence[Ref],
    width_decay: Ref,
    height_decay: Ref,
) -> None:
    """Along the width, then along the height.

    Args:
        plan: sizes.
        logits: how many are worked on at once.
        tables: for the rotation.
        operands: q, k and v.
        results: the only one.
        scratch: q and k rotated, and y, in which each row and then each column of values becomes its result.
        width_decay: scratch for the decay of each group.
        height_decay: the same.
    """
    (out_ref,), (q, k, y) = results, scratch
    _write_decay(plan, width_decay, plan.padded_width, plan.width)
    _write_decay(plan, height_decay, plan.padded_height, plan.height)
    _clear(plan, scratch)

    def picture(i: Array) -> None:
        _for_each(plan.height, _at_once(logits, width_decay), functools.partial(along_rows, i))
        _for_each(plan.width, _at_once(logits, height_decay), along_columns)
        _for_each(plan.height, _AT_ONCE, functools.partial(store_rows, i))

    def along_rows(i: Array, rows: list[Array]) -> None:
        _along_rows(plan, tables, operands, scratch, i, rows, width_decay)

    def along_columns(columns: list[Array]) -> None:
        of_columns = [[_column(plan, x, w) for x in (q, k, y)] for w in columns]
        for w, result in zip(columns, _attend(plan, of_columns, height_decay), strict=True):
            _set_column(plan, y, w, result)

    def store_rows(i: Array, rows: list[Array]) -> None:
        for h in rows:
            _store(plan, out_ref, i, h, _row(plan, y, h))

    _for_each(operands[0].shape[0], 1, lambda pictures: picture(*pictures))


def backward_axes(
    plan: Plan,
    logits: int,
    tables: Tables,
    operands: Sequence[Ref],
    results: Sequence[Ref],
    scratch: Sequence[Ref],
    width_decay: Ref,
    height_decay: Ref,
) -> None:
    """The width forward, the height backward, the width backward.

    Args:
        plan: sizes.
        logits: how many are worked on at once.
        tables: for the rotation.
        operands: q, k, v and the gradient of the result.
        results: the gradients of q, k and v.
        scratch: q and k rotated, y and the result's gradient. By columns, q, k and y become their gradients.
        width_decay: scratch for the decay of each group.
        height_decay: the same.
    """
    (q_ref, k_ref, v_ref, dout_ref), (dq_ref, dk_ref, dv_ref), (q, k, y, dout) = operands, results, scratch
    _write_decay(plan, width_decay, plan.padded_width, plan.width)
    _write_decay(plan, height_decay, plan.padded_height, plan.height)
    _clear(plan, scratch)

    def picture(i: Array) -> None:
        _for_each(plan.height, _at_once(logits, width_decay), functools.partial(rows_forward, i))
        _for_each(plan.width, _at_once(logits, height_decay), columns_backward)
        _for_each(plan.height, _at_once(logits, width_decay), functools.partial(rows_backward, i))

    def rows_forward(i: Array, rows: list[Array]) -> None:
        _along_rows(plan, tables, operands[:3], scratch[:3], i, rows, width_decay)
        for h in rows:
            _set_row(plan, dout, h, _load(plan, dout_ref, i, h))

    def columns_backward(columns: list[Array]) -> None:
        of_columns = [[_column(plan, x, w) for x in (q, k, y)] for w in columns]
        gradients = _attend_backward(plan, of_columns, [_column(plan, dout, w) for w in columns], height_decay)
        for w, gradient in zip(columns, gradients, strict=True):
            for x, column in zip((q, k, y), gradient, strict=True):
                _set_column(plan, x, w, column)

    def rows_backward(i: Array, rows: list[Array]) -> None:
        rotations = [_rotation(plan, tables, h) for h in rows]
        of_rows = [
            (
                _turn(plan, _load(plan, q_ref, i, h), rotation),
                _scale(plan, _turn(plan, _load(plan, k_ref, i, h), rotation)),
                _load(plan, v_ref, i, h),
            )
            for h, rotation in zip(rows, rotations, strict=True)
        ]
        gradients = _attend_backward(plan, of_rows, [_row(plan, y, h) for h in rows], width_decay)
        for h, rotation, (dq, dk, dv) in zip(rows, rotations, gradients, strict=True):
            dq, dk = _add(dq, _row(plan, q, h)), _add(dk, _row(plan, k, h))
            _store(plan, dq_ref, i, h, _turn(plan, dq, rotation, back=True))
            _store(plan, dk_ref, i, h, _scale(plan, _turn(plan, dk, rotation, back=True)))
            _store(plan, dv_ref, i, h, dv)

    _for_each(q_ref.shape[0], 1, lambda pictures: picture(*pictures))


def forward_full(
    plan: Plan,
    logits: int,
    tables: Tables,
    operands: Sequence[Ref],
    results: Sequence[Ref],
    scratch: Sequence[Ref],
    decay: Ref,
) -> None:
    """Over all tokens; the arguments as above, but that maps need no scratch memory."""
    del logits, scratch
    _write_decay(plan, decay, plan.lengths[0], plan.width)
    rotation = _rotation(plan, tables)

    def picture(i: Array) -> None:
        q, k, v = (_map(plan, ref, i) for ref in operands)
        q, k = _turn(plan, q, rotation), _scale(plan, _turn(plan, k, rotation))
        _store_map(plan, results[0], i, *_attend(plan, [(q, k, v)], decay))

    _for_each(operands[0].shape[0], 1, lambda pictures: picture(*pictures))


def backward_full(
    plan: Plan,
    logits: int,
    tables: Tables,
    operands: Sequence[Ref],
    results: Sequence[Ref],
    scratch: Sequence[Ref],
    decay: Ref,
) -> None:
    """Over all tokens; the arguments as above, but that maps need no scratch memory."""
    del logits, scratch
    _write_decay(plan, decay, plan.lengths[0], plan.width)
    rotation = _rotation(plan, tables)

    def picture(i: Array) -> None:
        q, k, v, dout = (_map(plan, ref, i) for ref in operands)
        q, k = _turn(plan, q, rotation), _scale(plan, _turn(plan, k, rotation))
        ((dq, dk, dv),) = _attend_backward(plan, [(q, k, v)], [dout], decay)
        dq, dk = _turn(plan, dq, rotation, back=True), _scale(plan, _turn(plan, dk, rotation, back=True))
        for ref, gradient in zip(results, (dq, dk, dv), strict=True):
            _store_map(plan, ref, i, gradient)

    _for_each(operands[0].shape[0], 1, lambda pictures: picture(*pictures))


def _along_rows(
    plan: Plan,
    tables: Tables,
    operands: Sequence[Ref],
    scratch: Sequence[Ref],
    i: Array,
    rows: list[Array],
    decay: Ref,
) -> None:
    """Rotates q and k of some rows of picture i into scratch memory, and the first axis' result of them into y."""
    of_rows = []
    for h in rows:
        q, k, v = (_load(plan, ref, i, h) for ref in operands)
        rotation = _rotation(plan, tables, h)
        of_rows.append((_turn(plan, q, rotation), _scale(plan, _turn(plan, k, rotation)), v))
    for h, (q, k, _), result in zip(rows, of_rows, _attend(plan, of_rows, decay), strict=True):
        for ref, row in zip(scratch, (q, k, result), strict=True):
            _set_row(plan, ref, h, row)


def _for_each(count: int, at_once: int, work: Callable[[list[Array]], Any]) -> None:
    """Work on 0 to count - 1, up to `at_once` an iteration."""
    at_once = max(size for size in range(1, at_once + 1) if count % size == 0)

    def iteration(i: Array, _: None) -> None:
        work([i * at_once + j for j in range(at_once)])

    jax.lax.fori_loop(0, count // at_once, iteration, None)


def _at_once(logits: int, decay: Ref) -> int:
    """Rows or columns an iteration, by the logits of each."""
    groups, rows, columns = decay.shape
    return max(1, min(_AT_ONCE, logits // (groups * rows * round_up(columns, LANES))))


def _write_decay(plan: Plan, ref: Ref, length: int, valid: int) -> None:
    for i, group in enumerate(plan.groups):
        stack = plan.stack(group, length)
        for j in range(stack.key_classes):
            decay = decay_logits(stack, j, group.log_rates, plan.padded_width if plan.full else None, valid)
            ref[i, j * length : (j + 1) * length, : stack.columns] = decay


def _clear(plan: Plan, scratch: Sequence[Ref]) -> None:
    """Zeros where no row and no column is written: they are read as keys, whose weights are zero but not their NaN."""
    if (plan.padded_height, plan.padded_width) != (plan.height, plan.width):
        for x in scratch:
            x[...] = jnp.zeros(x.shape, x.dtype)


def _attend(plan: Plan, operands: Sequence[Sequence[Tiles]], decay: Ref) -> list[Tiles]:
    """`attend` of q, k and v of some rows, columns or maps."""
    results = attend(_attentions(plan, operands, decay), plan.dtype)
    return [_join(groups) for groups in _by_operand(results, plan)]


def _attend_backward(
    plan: Plan, operands: Sequence[Sequence[Tiles]], gradients: Sequence[Tiles], decay: Ref
) -> list[list[Tiles]]:
    """Gradients of q, k and v of each."""
    parts = [_part(dy, group) for dy in gradients for group in plan.groups]
    results = attend_backward(_attentions(plan, operands, decay), parts, plan.dtype)
    return [[_join(groups) for groups in zip(*qkv, strict=True)] for qkv in _by_operand(results, plan)]


def _attentions(plan: Plan, operands: Sequence[Sequence[Tiles]], decay: Ref) -> list[Attention]:
    """Of every operand and every group of heads."""
    attentions = []
    for qkv in operands:
        for i, group in enumerate(plan.groups):
            stack = plan.stack(group, qkv[0][0].shape[0])
            logits = decay[i, : stack.rows, : stack.columns]
            q, k, v = (_part(x, group) for x in qkv)
            attentions.append(Attention(stack, q, k, v, logits))
    return attentions


def _by_operand(results: list[Any], plan: Plan) -> list[list[Any]]:
    groups = len(plan.groups)
    return [results[i : i + groups] for i in range(0, len(results), groups)]


def _part(tiles: Tiles, group: Group) -> Array:
    return jnp.concatenate(tiles[group.tiles], axis=1)


def _join(groups: Sequence[Array]) -> Tiles:
    return [tile for x in groups for tile in _split(x)]


def _split(x: Array) -> Tiles:
    return [x[:, start : start + LANES] for start in range(0, x.shape[1], LANES)]


def _turn(plan: Plan, x: Tiles, rotation: tuple[Tiles, Tiles, Array], *, back: bool = False) -> Tiles:
    """Rotation of each pair of channels by their phase, or by its opposite."""
    cos, sin, partner = rotation
    turned = []
    for i, tile in enumerate(x):
        along, across = tile * cos[i % len(cos)], product(tile.astype(plan.dtype), partner, (1, 0)) * sin[i % len(sin)]
        turned.append(along - across if back else along + across)
    return turned


def _scale(plan: Plan, x: Tiles) -> Tiles:
    return [tile * plan.head_dim**-0.5 for tile in x]


def _add(x: Tiles, y: Tiles) -> Tiles:
    return [a + b for a, b in zip(x, y, strict=True)]


def _load(plan: Plan, ref: Ref, i: Array, h: Array | int) -> Tiles:
    """Row h of picture i of a block, padded."""
    padding = (0, plan.padded_width - plan.width), (0, plan.tiles * LANES - plan.channels)
    return _split(jnp.pad(ref[i, h].astype(jnp.float32), padding))


def _store(plan: Plan, ref: Ref, i: Array, h: Array | int, row: Tiles) -> None:
    """Row h of picture i of a block."""
    ref[i, h] = jnp.concatenate(row, axis=1)[: plan.width, : plan.channels].astype(ref.dtype)


def _map(plan: Plan, ref: Ref, i: Array) -> Tiles:
    """All rows of picture i of a block."""
    rows = [_load(plan, ref, i, h) for h in range(plan.height)]
    return [jnp.concatenate(tiles, axis=0) for tiles in zip(*rows, strict=True)]


def _store_map(plan: Plan, ref: Ref, i: Array, x: Tiles) -> None:
    """All rows of picture i of a block."""
    for h in range(plan.height):
        _store(plan, ref, i, h, [tile[h * plan.padded_width : (h + 1) * plan.padded_width] for tile in x])


def _rotation(plan: Plan, tables: Tables, h: Array | None = None) -> tuple[Tiles, Tiles, Array]:
    """Cosines and sines for the tokens of row h, or for all, and the partners."""
    rows = slice(None) if h is None else _row_of(plan, h)
    cos, sin = ([table[i, rows] for i in range(plan.table_tiles)] for table in (tables.cos, tables.sin))
    return cos, sin, tables.partner[...]


def _row(plan: Plan, scratch: Ref, h: Array) -> Tiles:
    return [scratch[i, _row_of(plan, h)] for i in range(plan.tiles)]


def _row_of(plan: Plan, h: Array) -> Any:
    return pl.ds(pl.multiple_of(h * plan.padded_width, SUBLANES), plan.padded_width)


def _set_row(plan: Plan, scratch: Ref, h: Array, row: Tiles) -> None:
    """But for its padding, which stays zero."""
    start = pl.multiple_of(h * plan.padded_width, SUBLANES)
    for i, tile in enumerate(row):
        scratch[i, pl.ds(start, plan.width)] = tile[: plan.width]


def _column(plan: Plan, scratch: Ref, w: Array) -> Tiles:
    return [scratch.at[i][pl.ds(w, plan.padded_height, stride=plan.padded_width)] for i in range(plan.tiles)]


def _set_column(plan: Plan, scratch: Ref, w: Array, column: Tiles) -> None:
    """But for its padding, which stays zero."""
    for i, tile in enumerate(column):
        scratch.at[i][pl.ds(w, plan.height, stride=plan.padded_width)] = tile[: plan.height]
