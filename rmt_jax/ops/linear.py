"""Linear layer with its own backward pass, for the sake of CPUs."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from rmt_jax.ops.formulations import by_platform

Inputs = Float[Array, "*axes inputs"]
Outputs = Float[Array, "*axes outputs"]
Kernel = Float[Array, "inputs outputs"]
Bias = Float[Array, " outputs"]


@jax.custom_vjp
def linear(x: Inputs, kernel: Kernel, bias: Bias) -> Outputs:
    """x @ kernel + bias, all of one type.

    The gradients are the usual ones. On a CPU what comes back is computed once before it is used three times (XLA
    would work it out in each of the products), and its sum is a product with ones.
    """
    return x @ kernel + bias


def _forward(x: Inputs, kernel: Kernel, bias: Bias) -> tuple[Outputs, tuple[Inputs, Kernel]]:
    return linear(x, kernel, bias), (x, kernel)


def _backward(saved: tuple[Inputs, Kernel], dy: Outputs) -> tuple[Inputs, Kernel, Bias]:
    x, kernel = saved
    dy = by_platform("sums", {"reduction": _as_it_is, "by_halves": jax.lax.optimization_barrier}, dy)
    rows = dy.reshape(-1, dy.shape[-1])
    dkernel = x.reshape(-1, x.shape[-1]).T @ rows
    dbias = by_platform("sums", {"reduction": _sum, "by_halves": _sum_by_product}, rows)
    return dy @ kernel.T, dkernel, dbias


linear.defvjp(_forward, _backward)


def _as_it_is(x: Array) -> Array:
    return x


def _sum(rows: Float[Array, "rows outputs"]) -> Bias:
    return rows.sum(axis=0)


def _sum_by_product(rows: Float[Array, "rows outputs"]) -> Bias:
    return jnp.ones(len(rows), rows.dtype) @ rows
