"""Targets of token labelling: against upstream's numbers, and RoIAlign against loops."""

import functools
import math

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from rmt_jax.ops import token_targets
from rmt_jax.tasks.classification import AUX_LOSS_WEIGHT, cross_entropy
from tests.golden import golden

GRID, TOP = 18, 5
BOXES = np.array([[0.1, 0.2, 0.5, 0.6], [0, 0, 1, 1], [0.33, 0.05, 0.25, 0.4]], np.float32)
GROUND_TRUTH = [7, 500, 999]
# Fractions k / PRIME never bring a bin near a whole number of cells or a sample near the last allowed position, where
# rounding decides.
PRIME = 9973


def draw_maps(rng, count, classes):
    scores = rng.standard_normal((count, TOP, GRID, GRID)) * 3
    ids = np.zeros((count, TOP, GRID, GRID), np.int16)
    for b, h, w in np.ndindex(count, GRID, GRID):
        ids[b, :, h, w] = rng.choice(classes, TOP, replace=False)
    return scores.astype(np.float32), ids


@functools.cache
def fixture():
    """The golden case: (scores, ids, logits, token logits)."""
    rng = np.random.default_rng(55)
    scores, ids = draw_maps(rng, 3, 1000)
    return scores, ids, rng.standard_normal((3, 1000)), rng.standard_normal((3, 49, 1000))


run = jax.jit(token_targets, static_argnames=("num_classes", "size", "smoothing", "upstream_crops"))


def naive_roi_align(x, box, size):
    """torchvision's roi_align with aligned=False and sampling_ratio=-1, as its documentation describes it."""
    top, left = (float(value) * GRID - 0.5 for value in box[:2])
    height = max((float(box[0]) + float(box[2])) * GRID - 0.5 - top, 1)
    width = max((float(box[1]) + float(box[3])) * GRID - 0.5 - left, 1)
    rows, columns = math.ceil(height / size), math.ceil(width / size)
    out = np.zeros((size, size, x.shape[-1]))
    for p, q in np.ndindex(size, size):
        for i, j in np.ndindex(rows, columns):
            y0 = top + p * height / size + (i + 0.5) * height / size / rows
            x0 = left + q * width / size + (j + 0.5) * width / size / columns
            out[p, q] += naive_bilinear(x, y0, x0)
        out[p, q] /= rows * columns
    return out


def naive_bilinear(x, row, column):
    if not (-1 <= row <= GRID and -1 <= column <= GRID):
        return np.zeros(x.shape[-1])
    row, column = min(max(row, 0), GRID - 1), min(max(column, 0), GRID - 1)
    r, c = int(row), int(column)
    below, right = min(r + 1, GRID - 1), min(c + 1, GRID - 1)
    dy, dx = row - r, column - c
    upper, lower = (1 - dx) * x[r, c] + dx * x[r, right], (1 - dx) * x[below, c] + dx * x[below, right]
    return (1 - dy) * upper + dy * lower


def naive_targets(scores, ids, box, classes, size, smoothing):
    dense = np.zeros((GRID, GRID, classes))
    for k, h, w in np.ndindex(scores.shape):
        dense[h, w, ids[k, h, w]] += scores[k, h, w]
    shares = np.exp(naive_roi_align(dense, box, size))
    shares /= shares.sum(axis=-1, keepdims=True)
    return shares * (1 - smoothing + smoothing / classes) + smoothing / classes


@pytest.mark.parametrize("size", [7, 1])
def test_golden_targets(size):
    scores, ids, *_ = fixture()
    crop, tokens = run(scores, ids, BOXES, 1000, size=size, upstream_crops=True)
    expected = golden.expected("token_labels")[f"size{size}/target"]
    np.testing.assert_allclose(crop[:, ::5], expected[:, :, 1], rtol=2e-5, atol=1e-7)
    if size > 1:
        found = tokens.reshape(3, 49, 1000).transpose(0, 2, 1)
        np.testing.assert_allclose(found[:, ::5], expected[:, :, 2:], rtol=2e-5, atol=1e-7)
    else:
        np.testing.assert_array_equal(tokens[:, 0, 0], crop)


@pytest.mark.parametrize("box", [(0, 0, 0, 0), (1, 2, 5, 6)])
@pytest.mark.parametrize("loss", ["TokenLabelCrossEntropy", "TokenLabelGTCrossEntropy"])
def test_golden_losses(loss, box):
    scores, ids, logits, aux = fixture()
    crop, tokens = run(scores, ids, BOXES, 1000, upstream_crops=True)
    if "GT" in loss:  # upstream's other loss: more of the label of the data set where the map disagrees
        truth = jax.nn.one_hot(jnp.array(GROUND_TRUTH), 1000) * 0.9 + 1e-4
        agrees = (crop.argmax(axis=-1) == truth.argmax(axis=-1))[:, None]
        crop = jnp.where(agrees, 0.5 * crop + 0.5 * truth, 0.9 * crop + 0.1 * truth)
    share = (box[2] - box[0]) * (box[3] - box[1]) / 49
    mixed = (1 - share) * crop + share * crop[::-1]
    found = cross_entropy(jnp.asarray(logits, jnp.float32), mixed)
    found += AUX_LOSS_WEIGHT * cross_entropy(jnp.asarray(aux, jnp.float32), tokens.reshape(3, 49, 1000))
    expected = golden.expected("token_labels")[f"loss/{loss}/{'_'.join(map(str, box))}"]
    np.testing.assert_allclose(found, expected, rtol=5e-6)


@hypothesis.settings(max_examples=20, deadline=None, derandomize=True)
@hypothesis.given(corners=st.tuples(*[st.integers(0, PRIME)] * 4), size=st.sampled_from([7, 4, 1]))
@hypothesis.example(corners=(0, 0, PRIME, PRIME), size=7)
@hypothesis.example(corners=(0, 0, 40, 90), size=7)  # less than a cell, at the border
@hypothesis.example(corners=(PRIME - 40, PRIME - 90, PRIME, PRIME), size=7)
@hypothesis.example(corners=(PRIME - 5, 0, PRIME, 3), size=1)
def test_any_box_against_loops(corners, size):
    (top, bottom), (left, right) = sorted(corners[::2]), sorted(corners[1::2])
    hypothesis.assume(top < bottom and left < right)
    box = np.array([top, left, bottom - top, right - left], np.float32) / PRIME
    scores, ids = draw_maps(np.random.default_rng(corners), 1, 12)
    crop, tokens = run(scores, ids, box[None], 12, size=size, smoothing=0.2)
    np.testing.assert_allclose(tokens[0], naive_targets(scores[0], ids[0], box, 12, size, 0.2), atol=2e-5)
    np.testing.assert_allclose(crop[0], naive_targets(scores[0], ids[0], box, 12, 1, 0.2)[0, 0], atol=2e-5)


def test_rows_are_rows():
    """A class in the upper half only is in the upper tokens; upstream's crops have it on the left of this crop."""
    scores, ids = np.zeros((1, TOP, GRID, GRID), np.float32), np.arange(TOP, dtype=np.int16)[None, :, None, None]
    scores[:, 0, :9] = 20
    ids = np.broadcast_to(ids, scores.shape)
    box = np.array([[0.4, 0.0, 0.2, 1.0]], np.float32)
    _, tokens = run(scores, ids, box, 10, size=2)
    assert (np.asarray(tokens)[0, 0, :, 0] > 0.5).all()
    assert (np.asarray(tokens)[0, 1, :, 0] < 0.5).all()
    _, tokens = run(scores, ids, box, 10, size=2, upstream_crops=True)
    assert (np.asarray(tokens)[0, :, :, 0] > 0.5).tolist() == [[True, True], [False, False]]
    wide = np.array([[0.0, 0.0, 0.2, 1.0]], np.float32)
    assert (np.asarray(run(scores, ids, wide, 10, size=2)[1])[..., 0] > 0.5).all()
    assert not (np.asarray(run(scores, ids, wide, 10, size=2, upstream_crops=True)[1])[..., 0] > 0.5).all()


def test_half_floats_as_stored_and_a_traced_box():
    scores, ids = draw_maps(np.random.default_rng(0), 3, 50)
    crop, tokens = run(scores.astype(np.float16), ids, BOXES, 50)
    assert crop.dtype == tokens.dtype == jnp.float32
    assert tokens.shape == (3, 7, 7, 50)
    expected = run(scores.astype(np.float16).astype(np.float32), ids, BOXES, 50)
    np.testing.assert_array_equal(crop, expected[0])
    before = run._cache_size()
    run(scores.astype(np.float16), ids, BOXES[::-1].copy(), 50)
    assert run._cache_size() == before
    np.testing.assert_allclose(tokens.sum(axis=-1), 1 + 0.1 / 50, rtol=1e-5)


def test_classes_beyond_the_models_are_none():
    scores, ids = draw_maps(np.random.default_rng(1), 1, 50)
    kept = np.where(ids < 30, scores, 0)
    crop, _ = run(scores, ids, BOXES[:1], 30)
    np.testing.assert_array_equal(crop, run(kept, np.minimum(ids, 29), BOXES[:1], 30)[0])
