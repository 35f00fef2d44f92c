"""Rungs of single functions."""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import torch.nn.functional as F
from jax import Array
from torch import Tensor

from rmt_jax import ops
from rmt_jax.models import block, layers, rmt
from rmt_jax.ops import manhattan
from tests import torch_rmt
from tests.ladder.case import Case, Row
from tests.ladder.comparing import channels_first, compiled, error, function_rows


def constants(case: Case) -> Iterator[Row]:
    """Decay rates, their products with distances along an axis and on the grid, rotary angles."""
    (_, height, width), relpos = case.shape, case.relpos()
    rates = relpos.decay.float().numpy()
    # As gamma: near 1, one rounding of it is a large share of its logarithm.
    yield Row("gamma", error(np.exp(block.log_decay_rates(case.heads, *case.decay)), relpos.decay.exp()), "constant")
    axis, grid = compiled(lambda: (ops.axis_decay(width, rates), ops.manhattan_decay(height, width, rates)))()
    yield Row("axis decay", error(axis, torch_rmt.axis_bias(relpos.decay, width)), "constant")
    yield Row("Manhattan decay", error(grid, torch_rmt.manhattan_bias(relpos.decay, height, width)), "constant")
    yield Row("angles", error(ops.rotary_angles(case.head_dim), relpos.angle[::2]), "constant")


def gelu(case: Case) -> Iterator[Row]:
    """The activation."""
    yield from function_rows(case, "gelu", lambda x: rmt.gelu(x), F.gelu, case.input())


def depthwise(case: Case) -> Iterator[Row]:
    """Depthwise convolution, 3x3 or 5x5, which has a backward pass written by hand."""

    def theirs(x: Tensor, kernel: Tensor) -> Tensor:
        y = F.conv2d(channels_first(x), kernel.permute(3, 2, 0, 1), padding=size // 2, groups=case.dim)
        return y.permute(0, 2, 3, 1)

    size = 3 + 2 * (case.seed % 2)
    kernel = case.normal(size, size, 1, case.dim, scale=1 / size, salt=1)
    ours = layers.depthwise_conv2d
    yield from function_rows(
        case, f"{size}x{size}", lambda x, k: ours(x, k, jnp.zeros(case.dim)), theirs, case.input(), kernel
    )


def rotary(case: Case) -> Iterator[Row]:
    """Queries or keys, turned by the phases of their positions."""
    _, height, width = case.shape
    positions = case.relpos()(height, width)

    def ours(x: Array) -> Array:
        phase = manhattan.rotary_phase(height, width, case.head_dim)[:, :, None]
        turned = manhattan.rotate(ops.pairs_to_halves(x, 1), phase)
        return jnp.stack(jnp.split(turned, 2, axis=-1), axis=-1).reshape(x.shape)  # pairs side by side again

    def theirs(x: Tensor) -> Tensor:
        return heads_last(torch_rmt.rotate(heads_first(x), positions.sin, positions.cos))

    x = case.normal(*case.shape, case.heads, case.head_dim)
    yield from function_rows(case, "rotate", ours, theirs, x)


def decomposed(case: Case) -> Iterator[Row]:
    """Retention along one axis after the other."""
    _, height, width = case.shape
    rates = case.relpos().decay.float().numpy()

    def ours(q: Array, k: Array, v: Array) -> Array:
        decays = ops.axis_decay(width, rates), ops.axis_decay(height, rates)
        return manhattan.decomposed_retention(q, k, v, *decays)

    yield from attention_rows(case, ours, torch_rmt.decomposed_attention)


def full(case: Case) -> Iterator[Row]:
    """Retention over all positions."""
    rates = case.relpos().decay.float().numpy()

    def ours(q: Array, k: Array, v: Array) -> Array:
        decay = ops.manhattan_decay(*case.shape[1:], rates)
        return jax.vmap(manhattan.full_retention, in_axes=(0, 0, 0, None))(q, k, v, decay)

    yield from attention_rows(case, ours, torch_rmt.full_attention)


def attention_rows(case: Case, ours: Callable[..., Array], theirs: Callable[..., Tensor]) -> Iterator[Row]:
    """Either kind of retention on random queries, keys and values."""
    decay = case.relpos().decay
    shape = *case.shape, case.heads, case.head_dim
    q, v = case.normal(*shape, scale=1.5), case.normal(*shape, scale=case.scale, salt=4)
    k = case.normal(*shape, scale=1.5 * case.head_dim**-0.5, salt=3)

    def permuted(*qkv: Tensor) -> Tensor:
        return heads_last(theirs(*map(heads_first, qkv), decay))

    yield from function_rows(case, "retention", ours, permuted, q, k, v)


def heads_first(x: Tensor) -> Tensor:
    """[batch height width heads dim], our layout, to PyTorch's."""
    return x.permute(0, 3, 1, 2, 4)


def heads_last(x: Tensor) -> Tensor:
    """The reverse of `heads_first`."""
    return x.permute(0, 2, 3, 1, 4)
