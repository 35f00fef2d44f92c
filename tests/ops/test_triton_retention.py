"""The GPU's retention kernels, interpreted, against the specification; the real ones compile on GPUs alone."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmt_jax.ops import Heads, formulations, masa, pairs_to_halves, triton_fits
from tests.ops.test_pallas_retention import Function, errors, heads_of, maps, specification, with_gradients

MODULE = sys.modules["rmt_jax.ops.manhattan"]

# Shorter than the smallest tile, one and several blocks of queries, lengths that fill no block, unequal sides.
CASES = [
    (7, 9, 2, 16, False),
    (14, 33, 4, 16, False),
    (70, 3, 1, 32, False),
    (7, 7, 2, 32, True),
    (5, 14, 2, 16, True),
    (12, 14, 1, 32, True),
]


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels without a GPU, for float32 too."""
    for name in ("triton_retention", "triton_retention_gradients"):
        monkeypatch.setattr(MODULE, name, functools.partial(getattr(MODULE, name), interpret=True))
    monkeypatch.setattr(MODULE, "triton_fits", lambda *_: True)
    monkeypatch.setenv(formulations.ENVIRONMENT_VARIABLE, "retention=triton")
    jax.clear_caches()  # what was traced with others


def ours(heads: int, full: bool) -> Function:
    described = heads_of(heads, full)
    return lambda q, k, v: masa(pairs_to_halves(q, heads), pairs_to_halves(k, heads), v, described)


@pytest.mark.parametrize(("height", "width", "heads", "dim", "full"), CASES)
def test_equals_the_specification(height: int, width: int, heads: int, dim: int, full: bool) -> None:
    arguments = maps(2, height, width, heads * dim)
    expected = with_gradients(specification(heads, full))(*arguments)
    result, *gradients = errors(with_gradients(ours(heads, full))(*arguments), expected)
    assert result < 1e-6
    assert max(gradients) < 1e-5


@pytest.mark.parametrize(("height", "width", "heads", "dim", "full"), CASES)
def test_bfloat16_is_as_exact_as_its_products(height: int, width: int, heads: int, dim: int, full: bool) -> None:
    arguments = [x.astype(jnp.bfloat16) for x in maps(2, height, width, heads * dim)]
    found = with_gradients(ours(heads, full))(*arguments)
    assert {x.dtype for x in found} == {jnp.dtype(jnp.bfloat16)}
    exact = with_gradients(specification(heads, full))(*[x.astype(jnp.float32) for x in arguments])
    # Operands of products, the result between the axes and what comes out are rounded by up to 2 ** -9 = 0.002.
    assert max(errors(found, exact)) < 0.01


def test_large_logits_neither_overflow_nor_vanish() -> None:
    arguments = maps(1, 4, 20, 32, scale=30)
    found, expected = (with_gradients(f)(*arguments) for f in (ours(2, False), specification(2, False)))
    assert all(np.isfinite(x).all() for x in found)
    # Logits of some thousands, of which exponentials overflow, are known to 2e-4 each; most weights are 0 or 1.
    assert max(errors(found, expected)) < 1e-3


@pytest.mark.parametrize(
    ("height", "width", "channels", "heads", "dtype", "full", "fit"),
    [
        (56, 56, 64, 4, "bfloat16", False, True),
        (56, 56, 64, 4, "float32", False, False),  # products of Triton's are slower or less exact
        (200, 336, 64, 4, "bfloat16", False, False),  # a row's logits are too many
        (16, 16, 512, 16, "bfloat16", True, True),
        (17, 16, 512, 16, "bfloat16", True, False),
        (16, 16, 24, 2, "bfloat16", False, False),  # heads of 12
        (16, 16, 128, 2, "bfloat16", False, False),  # and of 64, whose gradients would fill the registers
        (16, 16, 60, 7, "bfloat16", False, False),  # no heads at all
    ],
)
def test_what_fits(height: int, width: int, channels: int, heads: int, dtype: str, full: bool, fit: bool) -> None:
    assert triton_fits(height, width, channels, dtype, Heads((0.0,) * heads, not full)) == fit
