"""Mixing of the samples of a group."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from rmt_jax.ops import blend, box_mask, box_share, draw_box, reverse_groups, swap_boxes


def maps(batch: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).standard_normal((batch, 4, 5, 2)).astype(np.float32))


def boxes(*edges: tuple[int, ...]) -> jax.Array:
    return jnp.array(edges, jnp.int32)


def test_box_excludes_its_bottom_and_right() -> None:
    expected = [[False, False, False], [False, True, True], [False, False, False]]
    np.testing.assert_array_equal(box_mask(boxes((1, 1, 2, 3))[0], 3, 3), expected)


def test_groups_are_reversed_each_by_itself() -> None:
    np.testing.assert_array_equal(reverse_groups(jnp.arange(6), 2), [2, 1, 0, 5, 4, 3])
    np.testing.assert_array_equal(reverse_groups(jnp.arange(6).reshape(6, 1), 3)[:, 0], [1, 0, 3, 2, 5, 4])
    with pytest.raises(ValueError, match="6 samples cannot be cut into 4 equal groups"):
        reverse_groups(jnp.arange(6), 4)


def test_swap_by_hand() -> None:
    x = jnp.arange(8.0).reshape(2, 2, 2, 1)  # [[0 1] [2 3]] and [[4 5] [6 7]]
    y = swap_boxes(x, boxes((0, 1, 2, 2)))
    np.testing.assert_array_equal(y[..., 0], [[[0, 5], [2, 7]], [[4, 1], [6, 3]]])


def test_every_group_has_its_own_box() -> None:
    x = maps(6)
    y = swap_boxes(x, boxes((0, 0, 1, 2), (2, 1, 4, 5)))
    expected = np.array(x)
    expected[:3, 0:1, 0:2] = x[:3][::-1][:, 0:1, 0:2]
    expected[3:, 2:4, 1:5] = x[3:][::-1][:, 2:4, 1:5]
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("batch", [1, 2, 3, 4])
def test_swapped_twice_is_unchanged(batch: int) -> None:
    x = maps(batch)
    once = swap_boxes(x, boxes((1, 0, 3, 4)))
    np.testing.assert_array_equal(swap_boxes(once, boxes((1, 0, 3, 4))), x)
    assert batch == 1 or not np.array_equal(once, x)


def test_empty_box_changes_nothing_and_the_whole_map_reverses_the_batch() -> None:
    x = maps(2)
    np.testing.assert_array_equal(swap_boxes(x, boxes((2, 3, 2, 3))), x)
    np.testing.assert_array_equal(swap_boxes(x, boxes((0, 0, 4, 5))), x[::-1])


def test_traced_boxes_share_one_compilation() -> None:
    x, run = maps(2), jax.jit(swap_boxes)
    for edges in ((0, 0, 1, 1), (1, 2, 4, 5)):
        top, left, bottom, right = edges
        expected = x.at[:, top:bottom, left:right].set(x[::-1, top:bottom, left:right])
        np.testing.assert_array_equal(run(x, boxes(edges)), expected)
    assert run._cache_size() == 1


def test_blend_by_hand() -> None:
    x = jnp.array([[0.0], [10.0], [100.0], [200.0]])
    np.testing.assert_allclose(blend(x, jnp.array([0.7, 0.25]))[:, 0], [3.0, 7.0, 175.0, 125.0], rtol=1e-6)


def test_sharded_groups_are_the_same_groups() -> None:
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    x = maps(16)
    edges = boxes((0, 0, 2, 2), (1, 1, 4, 5))
    sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    for function in (lambda x: swap_boxes(x, edges), lambda x: blend(x, jnp.array([0.3, 0.9]))):
        np.testing.assert_array_equal(jax.jit(function)(sharded), jax.jit(function)(x))


def drawn(share: float, count: int = 4000, height: int = 8, width: int = 10) -> np.ndarray:
    keys = jax.random.split(jax.random.key(1), count)
    return np.asarray(jax.vmap(lambda key: draw_box(key, jnp.float32(share), height, width))(keys))


def test_boxes_have_their_share_and_are_clipped_at_the_border() -> None:
    drawn_boxes = drawn(0.25)  # sides 8 * 0.5 and 10 * 0.5: 2 rows and 2 columns either side of the centre
    top, left, bottom, right = drawn_boxes.T
    assert (top.min(), bottom.max(), left.min(), right.max()) == (0, 8, 0, 10)
    centers_y = np.where(top > 0, top + 2, bottom - 2)
    np.testing.assert_array_equal(top, np.clip(centers_y - 2, 0, 8))
    np.testing.assert_array_equal(bottom, np.clip(centers_y + 2, 0, 8))
    # Centres are uniform over all positions: each row 1/8 of the draws, 5 standard deviations of a count allowed.
    counts = np.bincount(centers_y, minlength=8)
    assert counts.shape == (8,)
    assert np.abs(counts - 500).max() < 5 * np.sqrt(500)
    counts = np.bincount(np.where(left > 0, left + 2, right - 2), minlength=10)
    assert np.abs(counts - 400).max() < 5 * np.sqrt(400)


def test_extreme_shares() -> None:
    top, left, bottom, right = drawn(0.0).T
    assert (top == bottom).all()
    assert (left == right).all()
    top, left, bottom, right = drawn(1.0).T
    assert ((bottom - top) >= 4).all()  # from the border at least half of the map
    assert (bottom - top).max() == 8
    assert ((right - left) >= 5).all()


def test_share_of_boxes() -> None:
    shares = box_share(boxes((0, 0, 2, 5), (1, 1, 1, 4), (0, 0, 4, 5)), 4, 5)
    np.testing.assert_allclose(shares, [0.5, 0.0, 1.0], rtol=1e-6)
