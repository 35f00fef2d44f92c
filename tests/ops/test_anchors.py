"""Anchors: order, canvases larger than the picture. Upstream's numbers are in tests/reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmt_jax.ops import RPN_SCALES, anchor_boxes, anchors_inside, anchors_on_maps

STRIDES = (4, 8, 16, 32, 64)


def sizes(height: int, width: int) -> list[tuple[int, int]]:
    return [(-(-height // stride), -(-width // stride)) for stride in STRIDES]


def test_order_is_row_column_ratio_scale() -> None:
    (anchors,) = anchor_boxes([(2, 3)], [10], scales=(1.0, 2.0), ratios=(0.25, 1.0))
    grid = anchors.reshape(2, 3, 2, 2, 4)
    np.testing.assert_array_equal(grid[1, 2, 0, 0], [20 - 10, 10 - 2.5, 20 + 10, 10 + 2.5])
    np.testing.assert_array_equal(grid[0, 1, 1, 1], [10 - 10, -10, 10 + 10, 10])


@pytest.mark.parametrize("padded", [(96, 128), (64, 160), (32, 32)])
def test_those_of_a_picture_on_a_larger_canvas_are_its_own(padded: tuple[int, int]) -> None:
    on_canvas, own = (
        jax.jit(lambda size=size: anchor_boxes(sizes(*size), STRIDES, RPN_SCALES))() for size in ((128, 160), padded)
    )
    valid = jax.jit(lambda size: anchors_on_maps(sizes(128, 160), STRIDES, 3, size))(jnp.asarray(padded))
    for level, which, expected in zip(on_canvas, valid, own, strict=True):
        np.testing.assert_array_equal(level[which], expected)


def test_inside_is_up_to_but_without_the_border_on_the_right() -> None:
    boxes = jnp.asarray([[0.0, 0, 9, 19], [0, 0, 10, 19], [0, 0, 9, 20], [-1, 0, 5, 5], [0, -1, 5, 5]])
    np.testing.assert_array_equal(anchors_inside(boxes, (20, 10)), [True, False, False, False, False])


def test_every_map_needs_a_stride() -> None:
    with pytest.raises(ValueError, match="2 maps and 1 strides"):
        anchor_boxes([(2, 2), (1, 1)], [4], RPN_SCALES)
