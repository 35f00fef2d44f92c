"""Exchange of a box between a batch and its reverse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmt_jax.ops import box_mask, swap_box


def maps(batch: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).standard_normal((batch, 4, 5, 2)).astype(np.float32))


def box(*edges: int) -> jax.Array:
    return jnp.array(edges, jnp.int32)


def test_box_excludes_its_bottom_and_right() -> None:
    expected = [[False, False, False], [False, True, True], [False, False, False]]
    np.testing.assert_array_equal(box_mask(box(1, 1, 2, 3), 3, 3), expected)


def test_swap_by_hand() -> None:
    x = jnp.arange(8.0).reshape(2, 2, 2, 1)  # [[0 1] [2 3]] and [[4 5] [6 7]]
    y = swap_box(x, box(0, 1, 2, 2))
    np.testing.assert_array_equal(y[..., 0], [[[0, 5], [2, 7]], [[4, 1], [6, 3]]])


@pytest.mark.parametrize("batch", [1, 2, 3, 4])
def test_swapped_twice_is_unchanged(batch: int) -> None:
    x = maps(batch)
    once = swap_box(x, box(1, 0, 3, 4))
    np.testing.assert_array_equal(swap_box(once, box(1, 0, 3, 4)), x)
    assert batch == 1 or not np.array_equal(once, x)


def test_the_middle_of_an_odd_batch_keeps_its_map() -> None:
    x = maps(3)
    y = swap_box(x, box(0, 0, 2, 2))
    np.testing.assert_array_equal(y[1], x[1])
    np.testing.assert_array_equal(y[0, :2, :2], x[2, :2, :2])


def test_empty_box_changes_nothing_and_the_whole_map_reverses_the_batch() -> None:
    x = maps(2)
    np.testing.assert_array_equal(swap_box(x, box(2, 3, 2, 3)), x)
    np.testing.assert_array_equal(swap_box(x, box(0, 0, 4, 5)), x[::-1])


def test_traced_boxes_share_one_compilation() -> None:
    x, run = maps(2), jax.jit(swap_box)
    for edges in ((0, 0, 1, 1), (1, 2, 4, 5)):
        top, left, bottom, right = edges
        expected = x.at[:, top:bottom, left:right].set(x[::-1, top:bottom, left:right])
        np.testing.assert_array_equal(run(x, box(*edges)), expected)
    assert run._cache_size() == 1
