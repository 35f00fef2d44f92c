"""Suppression against a loop over the boxes, from the best to the worst."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmt_jax.ops import box_iou, classwise_nms, greedy_nms
from tests.ops.boxes import random_boxes

THRESHOLD = 0.5


def naive(boxes: np.ndarray, valid: np.ndarray, threshold: float) -> np.ndarray:
    iou = np.asarray(box_iou(jnp.asarray(boxes), jnp.asarray(boxes)))
    keep = np.zeros(len(boxes), bool)
    for i in np.flatnonzero(valid):
        keep[i] = not (iou[i, :i][keep[:i]] > threshold).any()
    return keep


run = jax.jit(greedy_nms, static_argnums=2)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([10.0, 60.0, 300.0]), st.sampled_from([0.1, 0.5, 0.7]))
def test_random_boxes(seed: int, canvas: float, threshold: float) -> None:
    """From one crowd in which most go to boxes that hardly meet; a fifth is padding."""
    boxes = random_boxes(64, seed, canvas=canvas)
    valid = np.random.default_rng(seed).random(64) < 0.8
    found = run(jnp.asarray(boxes), jnp.asarray(valid), threshold)
    np.testing.assert_array_equal(found, naive(boxes, valid, threshold))


def chain(count: int) -> np.ndarray:
    """Each box overlaps only the next above one half: it alone decides whether the one after that remains."""
    left = np.arange(count, dtype=np.float32) * 3
    return np.stack([left, np.zeros_like(left), left + 10, np.full_like(left, 10)], axis=1)


@pytest.mark.parametrize("removed_first", [False, True])
def test_the_longest_chains(removed_first: bool) -> None:
    """Every second box goes, and which of the two halves it is the first box decides, a hundred boxes away."""
    boxes, valid = chain(101), np.ones(101, bool)
    valid[0] = not removed_first
    found = run(jnp.asarray(boxes), jnp.asarray(valid), THRESHOLD)
    np.testing.assert_array_equal(found, np.arange(101) % 2 == (1 if removed_first else 0))
    np.testing.assert_array_equal(found, naive(boxes, valid, THRESHOLD))


def test_several_at_once_end_when_the_last_does() -> None:
    boxes = np.stack([chain(64), random_boxes(64, seed=1), np.repeat(chain(1), 64, axis=0)])
    valid = np.random.default_rng(0).random((3, 64)) < 0.9
    found = jax.jit(jax.vmap(functools.partial(greedy_nms, threshold=THRESHOLD)))(
        jnp.asarray(boxes), jnp.asarray(valid)
    )
    for index in range(3):
        np.testing.assert_array_equal(found[index], naive(boxes[index], valid[index], THRESHOLD))


def test_boxes_without_an_area_remain() -> None:
    boxes = jnp.asarray([[0.0, 0, 10, 10], [5, 5, 5, 5], [5, 5, 5, 5], [0, 0, 10, 10]])
    np.testing.assert_array_equal(run(boxes, jnp.ones(4, bool), THRESHOLD), [True, True, True, False])


def naive_classwise(boxes: np.ndarray, scores: np.ndarray, most: int) -> list[tuple[float, int, int]]:
    """(score, class, box) of each class for itself, all sorted together."""
    found = []
    for label in range(scores.shape[1]):
        of_class = boxes[:, label if boxes.shape[1] > 1 else 0]
        order = np.argsort(-scores[:, label], kind="stable")
        keep = naive(of_class[order], scores[order, label] > 0.05, THRESHOLD)
        found += [(float(scores[box, label]), label, int(box)) for box in order[keep]]
    return sorted(found, reverse=True)[:most]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("count", [3, 60])
def test_classwise(shared: bool, count: int) -> None:
    """With boxes to spare, and with fewer than slots; two pictures at once."""
    classes, most = 4, 30
    rng = np.random.default_rng(count)
    boxes = np.stack([random_boxes(count, seed) for seed in range(2 * (1 if shared else classes))])
    boxes = boxes.reshape(2, -1, count, 4).swapaxes(1, 2)
    scores = (rng.permutation(2 * count * classes).reshape(2, count, classes) / (2 * count * classes)).astype(
        np.float32
    )
    run = jax.jit(jax.vmap(functools.partial(classwise_nms, most=most)))
    found = run(jnp.asarray(boxes), jnp.asarray(scores))
    for index in range(2):
        expected = naive_classwise(boxes[index], scores[index], most)
        valid = np.asarray(found.valid[index])
        np.testing.assert_array_equal(valid, np.arange(most) < len(expected))
        np.testing.assert_array_equal(found.scores[index][valid], [score for score, _, _ in expected])
        np.testing.assert_array_equal(found.labels[index][valid], [label for _, label, _ in expected])
        of_class = [boxes[index, box, 0 if shared else label] for _, label, box in expected]
        np.testing.assert_array_equal(found.boxes[index][valid], of_class)
