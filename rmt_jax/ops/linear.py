"""Linear layer with its own backward pass, for the sake of CPUs."""

import functools
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from rmt_jax.ops.formulations import by_platform, overrides

Inputs = Float[Array, "*axes inputs"]
Outputs = Float[Array, "*axes outputs"]
Kernel = Float[Array, "inputs outputs"]
Bias = Float[Array, " outputs"]
Rows = Float[Array, "rows *row"]
Row = Float[Array, "*row"]
Arrays = TypeVar("Arrays")

MOST_PARTS = 8  # that are added up in one pass


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
    choices = {"barrier": jax.lax.optimization_barrier, "by_compiler": _as_it_is}
    found: Arrays = by_platform("reuse", overrides(), choices, x)
    return found


def sum_rows(x: Outputs) -> Bias:
    """Over all axes but the last, in float32."""
    rows = x.reshape(-1, x.shape[-1])
    return by_platform("sums", overrides(), {"reduction": _sum, "by_parts": _sum_by_parts}, rows)


def sum_by_parts(arrays: list[Rows]) -> list[Row]:
    """Each, all of one shape, over its leading axis, for CPUs: there a reduction is 20 times slower, whatever its axis.

    A few parts of the rows are added up, over and over until there is one. Each time is a vectorised pass, and XLA
    compiles it once for all of one shape, of which a model has many; a product with ones it would compile for each.
    """
    while (rows := len(arrays[0])) > 1:
        parts = max(number for number in range(1, MOST_PARTS + 1) if rows % number == 0)
        if parts == 1:  # of a prime number: filled up with zeros
            parts, missing = MOST_PARTS, -rows % MOST_PARTS
            arrays = [jnp.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1)) for array in arrays]
        arrays = computed_once([_add(array.reshape(parts, -1, *array.shape[1:])) for array in arrays])
    return [array[0] for array in arrays]


def _as_it_is(x: Any) -> Any:
    return x


def _add(rows: Rows) -> Row:
    return functools.reduce(jnp.add, rows)


def _sum(rows: Float[Array, "rows outputs"]) -> Bias:
    return rows.sum(axis=0)


def _sum_by_parts(rows: Float[Array, "rows outputs"]) -> Bias:
    return sum_by_parts([rows.astype(jnp.float32)])[0].astype(rows.dtype)
