"""Proposals and detections on a larger canvas, with fewer boxes than slots. Upstream's are in tests/reference."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmt_jax.ops import (
    RPN_SCALES,
    anchor_boxes,
    anchors_on_maps,
    rcnn_detections,
    retinanet_detections,
    rpn_proposals,
)
from tests.ops.boxes import random_boxes

STRIDES, CLASSES, PICTURE, CANVAS = (16, 32), 3, (64, 96), (96, 128)


def sizes(canvas: tuple[int, int]) -> list[tuple[int, int]]:
    return [(canvas[0] // stride, canvas[1] // stride) for stride in STRIDES]


def head(canvas: tuple[int, int], channels: int) -> list[jax.Array]:
    """Maps as of a picture of PICTURE size; beyond it on the canvas nothing that may have an effect."""
    maps = []
    for (height, width), (rows, columns) in zip(sizes(PICTURE), sizes(canvas), strict=True):
        array = np.full((rows, columns, 3, channels), 50, np.float32)
        array[:height, :width] = np.random.default_rng(channels).standard_normal((height, width, 3, channels))
        maps.append(jnp.asarray(array.reshape(-1, channels)))
    return maps


def run(function: Callable[..., Any], canvas: tuple[int, int], channels: int, **options: Any) -> Any:
    """Proposals or detections in the picture on a canvas; its last pixels are padding, too."""

    @jax.jit
    def compiled(logits: list[jax.Array], deltas: list[jax.Array], picture: jax.Array) -> Any:
        anchors = anchor_boxes(sizes(canvas), STRIDES, RPN_SCALES)
        valid = anchors_on_maps(sizes(canvas), STRIDES, 3, picture)
        return function(logits, deltas, anchors, valid, picture - jnp.asarray([4, 6]), **options)

    logits = head(canvas, channels)
    deltas = [0.3 * level for level in head(canvas, 4)]
    return compiled([level[:, 0] for level in logits] if channels == 1 else logits, deltas, jnp.asarray(PICTURE))


def assert_same_results(found: Any, expected: Any) -> None:
    np.testing.assert_array_equal(found.valid, expected.valid)
    for name, array in expected._asdict().items():
        np.testing.assert_array_equal(getattr(found, name)[expected.valid], array[expected.valid])


@pytest.mark.parametrize("before_nms", [20, 2000])
def test_proposals_alone_and_on_a_larger_canvas(before_nms: int) -> None:
    alone, padded = (run(rpn_proposals, canvas, 1, before_nms=before_nms, most=200) for canvas in (PICTURE, CANVAS))
    assert 10 < alone.valid.sum() < 90
    assert_same_results(padded, alone)
    boxes = np.asarray(alone.boxes[alone.valid])
    assert boxes.min() >= 0
    assert (boxes <= [90, 60, 90, 60]).all()


def test_proposals_teach_the_head_nothing() -> None:
    anchors = anchor_boxes(sizes(PICTURE), STRIDES, RPN_SCALES)

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1))
    def gradient(logits: list[jax.Array], deltas: list[jax.Array]) -> jax.Array:
        found = rpn_proposals(logits, deltas, anchors, [jnp.ones(len(level), bool) for level in logits], PICTURE)
        return found.boxes.sum() + found.scores.sum()

    gradients = gradient([level[:, 0] for level in head(PICTURE, 1)], head(PICTURE, 4))
    assert not any(level.any() for level in jax.tree.leaves(gradients))


def test_detections_alone_and_on_a_larger_canvas() -> None:
    scale = jnp.asarray([2.0, 0.5])
    alone, padded = (
        run(retinanet_detections, canvas, CLASSES, scale=scale, before_nms=5) for canvas in (PICTURE, CANVAS)
    )
    assert 5 < alone.valid.sum() <= 10 * CLASSES
    assert_same_results(padded, alone)
    # The original picture was twice as wide, and half as high.
    np.testing.assert_array_equal(alone.boxes[alone.valid].max(axis=0)[2:], [180, 30])


def test_regions_that_are_padding_find_nothing() -> None:
    rng = np.random.default_rng(0)
    rois = jnp.asarray(random_boxes(40, seed=0))
    logits = jnp.asarray(rng.standard_normal((40, CLASSES + 1)), jnp.float32)
    deltas = jnp.asarray(rng.standard_normal((40, CLASSES, 4)), jnp.float32)
    detect = jax.jit(functools.partial(rcnn_detections, size=(80, 90), scale=jnp.ones(2), stds=(0.1, 0.1, 0.2, 0.2)))
    alone = detect(rois[:25], jnp.ones(25, bool), logits[:25], deltas[:25])
    padded = detect(rois, jnp.arange(40) < 25, logits, deltas)
    assert 20 < alone.valid.sum() < 75
    assert_same_results(padded, alone)
