"""Linear layer with its own backward pass, for the sake of CPUs."""

import functools
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from rmt_jax.ops.formulations import chosen_here

Inputs = Float[Array, "*axes inputs"]
Outputs = Float[Array, "*axes outputs"]
Kernel = Float[Array, "inputs outputs"]
Bias = Float[Array, " outputs"]
Rows = Float[Array, "rows *row"]
FewerRows = Float[Array, "fewer_rows *row"]
Row = Float[Array, "*row"]
Arrays = TypeVar("Arrays")

MOST_PARTS = 8  # that are added up in one pass
MOST_ROWS = 256  # that a product with ones adds up


@jax.custom_vjp
def linear(x: Inputs, kernel: Kernel, bias: Bias) -> Outputs:
    """x @ kernel + bias, all of one type; the gradients are the usual ones, see `computed_once` and `sum_rows`."""
    return x @ kernel + bias


def _forward(x: Inputs, kernel: Kernel, bias: Bias) -> tuple[Outputs, tuple[Inputs, Kernel]]:
    return linear(x, kernel, bias), (x, kernel)


def _backward(saved: tuple[Inputs, Kernel], dy: Outputs) -> tuple[Inputs, Kernel, Bias]:
    x, kernel = saved
    dy = computed_once(dy)
    dkernel = x.reshape(-1, x.shape[-1]).T @ dy.reshape(-1, dy.shape[-1])
    return dy @ kernel.T, dkernel, sum_rows(dy)


linear.defvjp(_forward, _backward)


def computed_once(x: Arrays) -> Arrays:
    """x itself, an array or several, which XLA for CPUs would work out again wherever it is used.

    Or, of decays, would make a copy of one of them for every picture or line. Only programs with the options of
    `training/compiler.py` heed it: otherwise jax 0.10's XLA for CPUs forgets barriers before it decides what to fuse.
    """
    return jax.lax.optimization_barrier(x) if chosen_here("reuse") == "barrier" else x


def sum_rows(x: Outputs) -> Bias:
    """Over all axes but the last, in float32."""
    rows = x.reshape(-1, x.shape[-1])
    if chosen_here("sums") == "reduction":
        return rows.sum(axis=0)
    return sum_by_parts(rows.astype(jnp.float32)).astype(x.dtype)


def sum_by_parts(rows: Rows) -> Row:
    """Over the leading axis, for CPUs: there a reduction is 20 times slower, whatever its axis.

    Parts of the rows are added up, over and over until few are left, which a product with ones adds up. A pass is
    vectorised and compiled once for all of one shape, of which a model has many. Of two rows of ones the product is in
    XLA's library, of one it would be compiled for each.
    """
    while len(rows) > MOST_ROWS:
        (rows,) = add_parts([rows])
    ones = jnp.ones((2, len(rows)), rows.dtype)
    # Whatever the platform and its default: the rows are not to be rounded.
    totals = jnp.matmul(ones, rows.reshape(len(rows), -1), precision="highest")
    return totals[0].reshape(rows.shape[1:])


def add_parts(arrays: list[Rows]) -> list[FewerRows]:
    """So many parts of the rows of each, all of one shape, added up that an eighth or more of the rows is left."""
    rows = len(arrays[0])
    parts = max(number for number in range(1, MOST_PARTS + 1) if rows % number == 0)
    if parts == 1 < rows:  # of a prime number: filled up with zeros
        parts, missing = MOST_PARTS, -rows % MOST_PARTS
        arrays = [jnp.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1)) for array in arrays]
    return computed_once([_add(array.reshape(parts, -1, *array.shape[1:])) for array in arrays])


def _add(rows: Rows) -> Row:
    return functools.reduce(jnp.add, rows)
