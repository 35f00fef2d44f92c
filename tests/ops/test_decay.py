"""Decay rates and distances against numbers worked out by hand."""

import numpy as np
import pytest

from rmt_jax.ops import axis_decay, log_decay_rates, manhattan_decay
from tests.ops import naive


def test_rates_of_four_heads_by_hand() -> None:
    """gamma = 1 - 2**-(2 + 4 i / 4): 3/4, 7/8, 15/16, 31/32."""
    expected = np.log([3 / 4, 7 / 8, 15 / 16, 31 / 32])
    np.testing.assert_allclose(log_decay_rates(4, 2, 4), expected, rtol=1e-6)


@pytest.mark.parametrize(("num_heads", "span"), [(4, 4), (5, 5), (7, 6), (16, 6)])
def test_rates_are_float32_and_follow_the_formula(num_heads: int, span: int) -> None:
    rates = log_decay_rates(num_heads, 2, span)
    assert rates.dtype == np.float32
    # 1 - gamma is as small as 2**-8, so float32 leaves the logarithm 2**-24 / 2**-8 of relative error.
    np.testing.assert_allclose(rates, naive.log_decay_rates(num_heads, 2, span), rtol=2.0**-15)


def test_start_moves_every_head() -> None:
    np.testing.assert_allclose(log_decay_rates(2, 3, 2), np.log([7 / 8, 15 / 16]), rtol=1e-6)


def test_axis_decay_by_hand() -> None:
    rates = np.array([-1, -0.5], np.float32)
    expected = np.array([[0, 1, 2], [1, 0, 1], [2, 1, 0]])
    np.testing.assert_array_equal(axis_decay(3, rates), [-1.0 * expected, -0.5 * expected])


@pytest.mark.parametrize(("height", "width"), [(2, 3), (3, 2), (1, 4), (1, 1)])
def test_manhattan_decay_is_the_loop_over_positions(height: int, width: int) -> None:
    rates = np.array([-0.25, -1], np.float32)
    positions = [(h, w) for h in range(height) for w in range(width)]
    expected = [[[rate * (abs(h - i) + abs(w - j)) for i, j in positions] for h, w in positions] for rate in rates]
    np.testing.assert_array_equal(manhattan_decay(height, width, rates), np.array(expected, np.float32))


@pytest.mark.parametrize(
    "decay", [axis_decay(6, log_decay_rates(3, 2, 4)), manhattan_decay(2, 3, log_decay_rates(3, 2, 4))]
)
def test_decay_is_symmetric_with_zero_diagonal_and_negative_elsewhere(decay: np.ndarray) -> None:
    decay = np.asarray(decay)
    np.testing.assert_array_equal(decay, decay.transpose(0, 2, 1))
    assert ((decay == 0) == np.eye(6, dtype=bool)).all()
    assert (decay <= 0).all()
