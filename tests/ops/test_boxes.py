"""Overlaps and offsets of boxes, by hand and against loops. Upstream's numbers are in tests/reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmt_jax.ops import box_area, box_iou, clip_boxes, decode_boxes, encode_boxes, giou, l1_loss
from tests.ops.boxes import random_boxes

STDS = (0.1, 0.1, 0.2, 0.2)


def naive_overlap(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """(intersection, union) in float64."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    sides = [max(min(a[i + 2], b[i + 2]) - max(a[i], b[i]), 0.0) for i in (0, 1)]
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    intersection = sides[0] * sides[1]
    return intersection, sum(areas) - intersection


def test_overlaps_are_those_of_loops() -> None:
    a, b = random_boxes(20, seed=1), random_boxes(30, seed=2)
    expected = [[i / u for i, u in (naive_overlap(x, y) for y in b)] for x in a]
    np.testing.assert_allclose(box_iou(jnp.asarray(a), jnp.asarray(b)), expected, rtol=1e-5, atol=1e-7)
    around = [np.concatenate([np.minimum(x[:2], y[:2]), np.maximum(x[2:], y[2:])]) for x, y in zip(a, b, strict=False)]
    areas = box_area(jnp.asarray(np.stack(around)))
    generalised = [
        i / u - (area - u) / area
        for area, (i, u) in zip(np.asarray(areas, np.float64), map(naive_overlap, a, b[:20]), strict=True)
    ]
    np.testing.assert_allclose(giou(jnp.asarray(a), jnp.asarray(b[:20])), generalised, rtol=1e-5, atol=1e-6)


def test_overlaps_by_hand() -> None:
    one = jnp.asarray([[0.0, 0, 2, 2]])
    others = jnp.asarray([[0.0, 0, 2, 2], [1, 1, 3, 3], [2, 0, 4, 2], [1, 1, 1, 1], [5, 5, 6, 6]])
    np.testing.assert_allclose(box_iou(one, others)[0], [1, 1 / 7, 0, 0, 0])
    np.testing.assert_array_equal(box_iou(others[3:4], others[3:4]), [[0.0]])  # without an area, and no NaN


def test_decoding_undoes_encoding() -> None:
    boxes, targets = jnp.asarray(random_boxes(50, seed=1)), jnp.asarray(random_boxes(50, seed=2))
    back = decode_boxes(boxes, encode_boxes(boxes, targets, STDS), STDS)
    np.testing.assert_allclose(back, targets, atol=1e-3)


def test_decoded_boxes_grow_and_leave_the_picture_no_further_than_allowed() -> None:
    box, far = jnp.asarray([[10.0, 20, 20, 40]]), jnp.asarray([[0.0, 0, 100, -100]])
    width, height = np.array([10, 20]) * np.array([1000 / 16, 16 / 1000])
    expected = [[15 - width / 2, 30 - height / 2, 15 + width / 2, 30 + height / 2]]
    np.testing.assert_allclose(decode_boxes(box, far), expected, rtol=1e-5)
    clipped = jax.jit(lambda size: decode_boxes(box, far, size=size))(jnp.asarray([30, 50]))
    np.testing.assert_allclose(clipped, [[0, expected[0][1], 50, 30]], rtol=1e-5)
    np.testing.assert_array_equal(clip_boxes(jnp.asarray([[-5.0, 10, 60, 70]]), (40, 50)), [[0, 10, 50, 40]])


@pytest.mark.parametrize("empty", ["boxes", "targets", "both"])
def test_offsets_of_padding_leave_no_trace_in_a_masked_loss(empty: str) -> None:
    boxes, targets = jnp.asarray(random_boxes(2, seed=1)), jnp.asarray(random_boxes(2, seed=2))
    if empty != "targets":
        boxes = boxes.at[1].set(0)
    if empty != "boxes":
        targets = targets.at[1].set(0)

    def loss(predictions: jax.Array) -> jax.Array:
        losses = l1_loss(predictions, encode_boxes(boxes, targets))
        return jnp.where(jnp.asarray([True, False])[:, None], losses, 0).sum()

    value, gradient = jax.value_and_grad(loss)(jnp.zeros((2, 4)))
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    assert not gradient[1].any()
