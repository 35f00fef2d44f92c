"""How weights start: the distributions of the libraries that upstream is built on, drawn by few programs.

XLA compiles a program for every shape that is drawn, and that was most of the time until a fresh model was there. Here
rows of a few lengths are drawn and cut to the shapes. Number i of a row depends on the key and on i alone
(`jax_threefry_partitionable`, JAX's default), so they are the numbers that `jax.random.normal(key, shape)` gives.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

SHORTEST_ROW = 1024  # longer ones are powers of four: less than three of four numbers are drawn in vain

Shape = tuple[int, ...]


def normal(stddev: float) -> nnx.Initializer:
    """Normal with mean 0."""
    return _drawn_in_rows(lambda shape: nnx.initializers.normal(stddev))


def uniform_by_fan_in(fan_in: int) -> nnx.Initializer:
    """Uniform within +-1 / sqrt(fan_in): PyTorch's default for convolutions, weights and biases alike."""
    return _drawn_in_rows(lambda shape: _uniform(1 / math.sqrt(fan_in)))


def _uniform(bound: float) -> nnx.Initializer:
    return partial(_draw_uniform, bound)


def _draw_uniform(bound: float, key: Array, shape: Any, dtype: Any = jnp.float32) -> Array:
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def _drawn_in_rows(of_shape: Callable[[Shape], nnx.Initializer]) -> nnx.Initializer:
    """The distribution of a shape, which does not tell one number from another, drawn in a row."""
    return partial(_draw_in_row, of_shape)


def _draw_in_row(
    of_shape: Callable[[Shape], nnx.Initializer], key: Array, shape: Any, dtype: Any = jnp.float32
) -> Array:
    size, length = math.prod(shape), SHORTEST_ROW
    while length < size:
        length *= 4
    return of_shape(tuple(shape))(key, (length,), dtype)[:size].reshape(shape)


def _fans(shape: Shape) -> tuple[int, int]:
    """(fan_in, fan_out) of a kernel [*window inputs outputs]."""
    *window, inputs, outputs = shape
    return inputs * math.prod(window), outputs * math.prod(window)


# Normal with variance 2 / fan_out (arXiv 1502.01852): mmcv's `kaiming_init`.
KAIMING = _drawn_in_rows(lambda shape: nnx.initializers.normal(math.sqrt(2 / _fans(shape)[1])))

# Uniform with variance 2 / (fan_in + fan_out) (Glorot and Bengio, 2010): mmcv's `xavier_init`.
XAVIER = _drawn_in_rows(lambda shape: _uniform(math.sqrt(6 / sum(_fans(shape)))))
