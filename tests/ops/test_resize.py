"""Resizes against loops over their rules, and against PyTorch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from rmt_jax.ops import adaptive_mean_pool, resize_bilinear, resize_nearest
from tests.models.small import jaxtyping_disabled

LENGTHS = st.integers(1, 40)
SIZES = st.tuples(LENGTHS, LENGTHS)


def random_map(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((2, *size, 3)).astype(np.float32)


def loop(x: np.ndarray, size: tuple[int, int], taps: Callable[[int, int, int], dict[int, float]]) -> np.ndarray:
    """In float64, every output from the {input: weight} of its row and of its column."""
    y = np.zeros((x.shape[0], *size, x.shape[3]))
    for i, j in np.ndindex(*size):
        for row, row_weight in taps(x.shape[1], size[0], i).items():
            for column, column_weight in taps(x.shape[2], size[1], j).items():
                y[:, i, j] += row_weight * column_weight * x[:, row, column].astype(np.float64)
    return y


def bilinear_taps(n: int, out: int, i: int) -> dict[int, float]:
    position = max((i + 0.5) * n / out - 0.5, 0)
    low = int(position)
    high, share = min(low + 1, n - 1), position - low
    return {low: 1.0} if high == low else {low: 1 - share, high: share}


def pool_taps(n: int, bins: int, i: int) -> dict[int, float]:
    inside = range(int(np.floor(i * n / bins)), int(np.ceil((i + 1) * n / bins)))
    return {position: 1 / len(inside) for position in inside}


def in_torch(function: Callable[..., torch.Tensor], x: np.ndarray, **options: Any) -> np.ndarray:
    return function(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), **options).numpy().transpose(0, 2, 3, 1)


@settings(max_examples=15, deadline=None)
@given(SIZES, SIZES)
def test_bilinear(size: tuple[int, int], out: tuple[int, int]) -> None:
    x = random_map(size)
    found = resize_bilinear(jnp.asarray(x), out)
    np.testing.assert_allclose(found, loop(x, out, bilinear_taps), rtol=1e-5, atol=1e-6)
    # In float64, as PyTorch rounds positions to the type of the map: in float32 that alone is an error of 1e-5.
    expected = in_torch(F.interpolate, x.astype(np.float64), size=out, mode="bilinear", align_corners=False)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@settings(max_examples=15, deadline=None)
@given(SIZES, st.integers(1, 8))
def test_pooling(size: tuple[int, int], bins: int) -> None:
    x = random_map(size)
    found = adaptive_mean_pool(jnp.asarray(x), bins)
    np.testing.assert_allclose(found, loop(x, (bins, bins), pool_taps), rtol=1e-5, atol=1e-6)
    expected = in_torch(F.adaptive_avg_pool2d, x, output_size=bins)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_bins_overlap_where_they_do_not_divide_the_size() -> None:
    """16 positions in 3 bins: 0 to 6, 5 to 11, 10 to 16."""
    ramp = jnp.broadcast_to(jnp.arange(16.0)[None, :, None, None], (1, 16, 16, 1))
    np.testing.assert_allclose(adaptive_mean_pool(ramp, 3)[0, :, 0, 0], [2.5, 7.5, 12.5], rtol=1e-6)


@settings(max_examples=15, deadline=None)
@given(SIZES, SIZES)
def test_nearest(size: tuple[int, int], out: tuple[int, int]) -> None:
    x = random_map(size)
    np.testing.assert_array_equal(resize_nearest(jnp.asarray(x), out), in_torch(F.interpolate, x, size=out))


@pytest.mark.parametrize(("n", "out"), [(1, 1), (1, 2), (7, 13), (32, 64), (67, 133)])
def test_nearest_to_about_twice_the_size(n: int, out: int) -> None:
    """As between the levels of a pyramid, where every position is taken twice."""
    ramp = jnp.arange(n, dtype=jnp.float32).reshape(1, n, 1, 1)
    found, pull = jax.vjp(lambda x: resize_nearest(x, (out, 1)), ramp)
    np.testing.assert_array_equal(found[0, :, 0, 0], np.arange(out) * n // out)
    np.testing.assert_array_equal(pull(jnp.ones_like(found))[0].ravel(), np.bincount(np.arange(out) * n // out))


def test_nearest_rounds_as_pytorch_where_a_whole_number_is_meant() -> None:
    x = np.arange(2, dtype=np.float32).reshape(1, 2, 1, 1)
    found = resize_nearest(jnp.asarray(x), (82, 1))
    assert found[0, 41, 0, 0] == 0  # and not floor(41 * 2 / 82) = 1
    np.testing.assert_array_equal(found, in_torch(F.interpolate, x, size=(82, 1)))


RESIZES: dict[str, tuple[Callable[..., jax.Array], Callable[..., torch.Tensor]]] = {
    "nearest": (lambda x: resize_nearest(x, (13, 5)), lambda x: F.interpolate(x, size=(13, 5))),
    "bilinear": (
        lambda x: resize_bilinear(x, (13, 5)),
        lambda x: F.interpolate(x, size=(13, 5), mode="bilinear", align_corners=False),
    ),
    "pooling": (lambda x: adaptive_mean_pool(x, 6), lambda x: F.adaptive_avg_pool2d(x, 6)),
}


@pytest.mark.parametrize("name", RESIZES)
def test_gradients(name: str) -> None:
    ours, theirs = RESIZES[name]
    x = random_map((7, 11))
    y, pull = jax.vjp(ours, jnp.asarray(x))
    dy = np.random.default_rng(1).standard_normal(y.shape).astype(np.float32)
    leaf = torch.from_numpy(x.transpose(0, 3, 1, 2).copy()).requires_grad_()
    theirs(leaf).backward(torch.from_numpy(dy.transpose(0, 3, 1, 2).copy()))
    np.testing.assert_allclose(pull(jnp.asarray(dy))[0], leaf.grad.numpy().transpose(0, 2, 3, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", RESIZES)
def test_bfloat16_is_rounded_once(name: str) -> None:
    ours = RESIZES[name][0]
    x = jnp.asarray(random_map((7, 11)), jnp.bfloat16)
    np.testing.assert_array_equal(ours(x), ours(x.astype(jnp.float32)).astype(jnp.bfloat16), strict=True)


def test_the_same_size_is_the_same_map() -> None:
    x = jnp.asarray(random_map((7, 11)))
    for resize in (resize_nearest, resize_bilinear):
        np.testing.assert_array_equal(resize(x, (7, 11)), x)


def test_sizes_that_are_none() -> None:
    x = jnp.asarray(random_map((7, 11)))
    with jaxtyping_disabled():
        with pytest.raises(ValueError, match="size must be positive, got 0 x 5"):
            resize_bilinear(x, (0, 5))
        with pytest.raises(ValueError, match="size must be positive, got 3 x -1"):
            resize_nearest(x, (3, -1))
        with pytest.raises(ValueError, match="bins must be positive, got 0"):
            adaptive_mean_pool(x, 0)
