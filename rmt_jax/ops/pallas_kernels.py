"""The Pallas kernels of `pallas_retention`: one grid step holds a few pictures whole in the chip's memory.

Axes: pictures of a step, height, width, channels, tiles.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from rmt_jax.ops import pallas_tiles as tiles
from rmt_jax.ops.pallas_heads import LANES, Attention, attend, attend_backward, decay_logits, round_up
from rmt_jax.ops.pallas_plan import Plan, Ref, Tables, Tiles

_AT_ONCE = 14  # rows or columns that one iteration works on at most: while one waits for a unit, others use the rest


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
        of_columns = [[tiles.column(plan, x, w) for x in (q, k, y)] for w in columns]
        for w, result in zip(columns, _attend(plan, of_columns, height_decay), strict=True):
            tiles.set_column(plan, y, w, result)

    def store_rows(i: Array, rows: list[Array]) -> None:
        for h in rows:
            tiles.store(plan, out_ref, i, h, tiles.row(plan, y, h))

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
            tiles.set_row(plan, dout, h, tiles.load(plan, dout_ref, i, h))

    def columns_backward(columns: list[Array]) -> None:
        of_columns = [[tiles.column(plan, x, w) for x in (q, k, y)] for w in columns]
        gradients = _attend_backward(plan, of_columns, [tiles.column(plan, dout, w) for w in columns], height_decay)
        for w, gradient in zip(columns, gradients, strict=True):
            for x, column in zip((q, k, y), gradient, strict=True):
                tiles.set_column(plan, x, w, column)

    def rows_backward(i: Array, rows: list[Array]) -> None:
        rotations = [tiles.rotation(plan, tables, h) for h in rows]
        of_rows = [
            (
                tiles.turn(plan, tiles.load(plan, q_ref, i, h), rotation),
                tiles.scale(plan, tiles.turn(plan, tiles.load(plan, k_ref, i, h), rotation)),
                tiles.load(plan, v_ref, i, h),
            )
            for h, rotation in zip(rows, rotations, strict=True)
        ]
        gradients = _attend_backward(plan, of_rows, [tiles.row(plan, y, h) for h in rows], width_decay)
        for h, rotation, (dq, dk, dv) in zip(rows, rotations, gradients, strict=True):
            dq, dk = tiles.add(dq, tiles.row(plan, q, h)), tiles.add(dk, tiles.row(plan, k, h))
            tiles.store(plan, dq_ref, i, h, tiles.turn(plan, dq, rotation, back=True))
            tiles.store(plan, dk_ref, i, h, tiles.scale(plan, tiles.turn(plan, dk, rotation, back=True)))
            tiles.store(plan, dv_ref, i, h, dv)

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
    rotation = tiles.rotation(plan, tables)

    def picture(i: Array) -> None:
        q, k, v = (tiles.map(plan, ref, i) for ref in operands)
        q, k = tiles.turn(plan, q, rotation), tiles.scale(plan, tiles.turn(plan, k, rotation))
        tiles.store_map(plan, results[0], i, *_attend(plan, [(q, k, v)], decay))

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
    rotation = tiles.rotation(plan, tables)

    def picture(i: Array) -> None:
        q, k, v, dout = (tiles.map(plan, ref, i) for ref in operands)
        q, k = tiles.turn(plan, q, rotation), tiles.scale(plan, tiles.turn(plan, k, rotation))
        ((dq, dk, dv),) = _attend_backward(plan, [(q, k, v)], [dout], decay)
        dq, dk = tiles.turn(plan, dq, rotation, back=True), tiles.scale(plan, tiles.turn(plan, dk, rotation, back=True))
        for ref, gradient in zip(results, (dq, dk, dv), strict=True):
            tiles.store_map(plan, ref, i, gradient)

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
        q, k, v = (tiles.load(plan, ref, i, h) for ref in operands)
        rotation = tiles.rotation(plan, tables, h)
        of_rows.append((tiles.turn(plan, q, rotation), tiles.scale(plan, tiles.turn(plan, k, rotation)), v))
    for h, (q, k, _), result in zip(rows, of_rows, _attend(plan, of_rows, decay), strict=True):
        for ref, row in zip(scratch, (q, k, result), strict=True):
            tiles.set_row(plan, ref, h, row)


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
    return _by_operand(results, plan)


def _attend_backward(
    plan: Plan, operands: Sequence[Sequence[Tiles]], gradients: Sequence[Tiles], decay: Ref
) -> list[list[Tiles]]:
    """Gradients of q, k and v of each."""
    parts = [tile for dy in gradients for tile in dy]
    results = attend_backward(_attentions(plan, operands, decay), parts, plan.dtype)
    return [[list(x) for x in zip(*qkv, strict=True)] for qkv in _by_operand(results, plan)]


def _attentions(plan: Plan, operands: Sequence[Sequence[Tiles]], decay: Ref) -> list[Attention]:
    """Of every operand and every group of heads."""
    attentions = []
    for qkv in operands:
        for i, group in enumerate(plan.groups):
            stack = plan.stack(group, qkv[0][0].shape[0])
            logits = decay[i, : stack.rows, : stack.columns]
            q, k, v = (x[i] for x in qkv)
            attentions.append(Attention(stack, q, k, v, logits))
    return attentions


def _by_operand(results: list[Any], plan: Plan) -> list[list[Any]]:
    groups = len(plan.groups)
    return [results[i : i + groups] for i in range(0, len(results), groups)]
