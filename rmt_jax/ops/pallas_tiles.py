"""Rows, columns and maps between blocks, scratch memory and tiles, and the rotation of tiles; see `pallas_plan`."""

from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl

from rmt_jax.ops.pallas_heads import LANES, SUBLANES, product
from rmt_jax.ops.pallas_plan import Plan, Ref, Tables, Tiles


def split(x: Array) -> Tiles:
    """Tiles of 128 channels."""
    return [x[:, start : start + LANES] for start in range(0, x.shape[1], LANES)]


def turn(plan: Plan, x: Tiles, rotation: tuple[Array, Array, Array], *, back: bool = False) -> Tiles:
    """Rotation of each pair of channels by their phase, or by its opposite."""
    cos, sin, partner = rotation
    turned = []
    for tile in x:
        along, across = tile * cos, product(tile.astype(plan.dtype), partner, (1, 0)) * sin
        turned.append(along - across if back else along + across)
    return turned


def scale(plan: Plan, x: Tiles) -> Tiles:
    """Times dim ** -0.5."""
    return [tile * plan.head_dim**-0.5 for tile in x]


def add(x: Tiles, y: Tiles) -> Tiles:
    """Tile by tile."""
    return [a + b for a, b in zip(x, y, strict=True)]


def load(plan: Plan, ref: Ref, i: Array, h: Array | int) -> Tiles:
    """Row h of picture i of a block, padded."""
    padding = (0, plan.padded_width - plan.width), (0, plan.tiles * LANES - plan.channels)
    return split(jnp.pad(ref[i, h].astype(jnp.float32), padding))


def store(plan: Plan, ref: Ref, i: Array, h: Array | int, row: Tiles) -> None:
    """Row h of picture i of a block."""
    ref[i, h] = jnp.concatenate(row, axis=1)[: plan.width, : plan.channels].astype(ref.dtype)


def map(plan: Plan, ref: Ref, i: Array) -> Tiles:
    """All rows of picture i of a block."""
    rows = [load(plan, ref, i, h) for h in range(plan.height)]
    return [jnp.concatenate(tiles, axis=0) for tiles in zip(*rows, strict=True)]


def store_map(plan: Plan, ref: Ref, i: Array, x: Tiles) -> None:
    """All rows of picture i of a block."""
    for h in range(plan.height):
        store(plan, ref, i, h, [tile[h * plan.padded_width : (h + 1) * plan.padded_width] for tile in x])


def rotation(plan: Plan, tables: Tables, h: Array | None = None) -> tuple[Array, Array, Array]:
    """Cosines and sines for the tokens of row h, or for all, and the partners."""
    rows = slice(None) if h is None else row_of(plan, h)
    return tables.cos[rows], tables.sin[rows], tables.partner[...]


def row(plan: Plan, scratch: Ref, h: Array) -> Tiles:
    """Row h of a map in scratch memory."""
    return [scratch[i, row_of(plan, h)] for i in range(plan.tiles)]


def row_of(plan: Plan, h: Array) -> Any:
    """Where row h of a map lies in scratch memory."""
    return pl.ds(pl.multiple_of(h * plan.padded_width, SUBLANES), plan.padded_width)


def set_row(plan: Plan, scratch: Ref, h: Array, row: Tiles) -> None:
    """But for its padding, which stays zero."""
    start = pl.multiple_of(h * plan.padded_width, SUBLANES)
    for i, tile in enumerate(row):
        scratch[i, pl.ds(start, plan.width)] = tile[: plan.width]


def column(plan: Plan, scratch: Ref, w: Array) -> Tiles:
    """Column w of a map in scratch memory."""
    return [scratch.at[i][pl.ds(w, plan.padded_height, stride=plan.padded_width)] for i in range(plan.tiles)]


def set_column(plan: Plan, scratch: Ref, w: Array, column: Tiles) -> None:
    """But for its padding, which stays zero."""
    for i, tile in enumerate(column):
        scratch.at[i][pl.ds(w, plan.height, stride=plan.padded_width)] = tile[: plan.height]
