"""Masks in the picture against an interpolation of every pixel. Upstream's are in tests/reference."""

import numpy as np
import pytest

from rmt_jax.tasks import paste_mask

MASK = np.random.default_rng(0).random((28, 28)).astype(np.float32)
SIZE = (50, 70)


def naive(mask: np.ndarray, box: tuple[float, ...], row: int, column: int) -> float:
    """One pixel, from the four values around it; outside the mask are zeros."""
    padded = np.pad(mask, 1)
    y, x = (
        (pixel + 0.5 - start) / (stop - start) * 28 + 0.5
        for pixel, start, stop in ((row, box[1], box[3]), (column, box[0], box[2]))
    )
    if not (0 <= y < 29 and 0 <= x < 29):
        return 0.0
    top, left = int(y), int(x)
    weights = np.outer([1 - (y - top), y - top], [1 - (x - left), x - left])
    return float((weights * padded[top : top + 2, left : left + 2]).sum())


@pytest.mark.parametrize("box", [(5.3, 4.2, 60.1, 30.9), (-10.0, 20.5, 30.0, 70.0), (33.2, 10.4, 35.0, 11.1)])
def test_every_pixel(box: tuple[float, ...]) -> None:
    """A box in the picture, one across its border, and one smaller than the mask."""
    values = np.array([[naive(MASK, box, row, column) for column in range(SIZE[1])] for row in range(SIZE[0])])
    clear = np.abs(values - 0.5) > 1e-4
    found = paste_mask(MASK, np.array(box, np.float32), SIZE)
    assert found.any()
    np.testing.assert_array_equal(found[clear], values[clear] >= 0.5)


def test_boxes_outside_the_picture_leave_no_trace() -> None:
    for box in ([80, 10, 95, 20], [-40, -40, -10, -10], [10, 60, 20, 90]):
        assert not paste_mask(np.ones((28, 28), np.float32), np.array(box, np.float32), SIZE).any()
