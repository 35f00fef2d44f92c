"""Proposals and detections on a larger canvas, with fewer boxes than slots. Upstream's are in tests/reference."""

import functools
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
Arrays = dict[str, Any]


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


def outputs(canvas: tuple[int, int]) -> dict[str, Any]:
    return {
        "deltas": [0.3 * level for level in head(canvas, 4)],
        "anchors": anchor_boxes(sizes(canvas), STRIDES, RPN_SCALES),
        "valid": anchors_on_maps(sizes(canvas), STRIDES, 3, jnp.asarray(PICTURE)),
        "size": jnp.asarray([60, 90]),
    }


@pytest.mark.parametrize("before_nms", [20, 2000])
def test_proposals_alone_and_on_a_larger_canvas(before_nms: int) -> None:
    run = jax.jit(functools.partial(rpn_proposals, before_nms=before_nms, most=200))
    alone, padded = (run([level[:, 0] for level in head(canvas, 1)], **outputs(canvas)) for canvas in (PICTURE, CANVAS))
    assert 10 < alone.valid.sum() < 90
    for name, array in alone._asdict().items():
        np.testing.assert_array_equal(getattr(padded, name)[alone.valid], array[alone.valid])
    np.testing.assert_array_equal(padded.valid, alone.valid)
    boxes = np.asarray(alone.boxes[alone.valid])
    assert boxes.min() >= 0
    assert (boxes <= [90, 60, 90, 60]).all()


@pytest.mark.parametrize("before_nms", [5, 1000])
def test_detections_alone_and_on_a_larger_canvas(before_nms: int) -> None:
    run = jax.jit(functools.partial(retinanet_detections, before_nms=before_nms))
    alone, padded = (
        run(head(canvas, CLASSES), scale=jnp.asarray([2.0, 0.5]), **outputs(canvas)) for canvas in (PICTURE, CANVAS)
    )
    for name, array in alone._asdict().items():
        np.testing.assert_array_equal(getattr(padded, name)[alone.valid], array[alone.valid])
    np.testing.assert_array_equal(padded.valid, alone.valid)
    assert alone.boxes[alone.valid].max(axis=0)[2] == 180  # the picture was half as wide, and twice as high
    assert alone.boxes[alone.valid].max(axis=0)[3] == 30


def test_regions_that_are_padding_find_nothing() -> None:
    rng = np.random.default_rng(0)
    rois = jnp.asarray(random_boxes(40, seed=0))
    logits = jnp.asarray(rng.standard_normal((40, CLASSES + 1)), jnp.float32)
    deltas = jnp.asarray(rng.standard_normal((40, CLASSES, 4)), jnp.float32)
    run = jax.jit(functools.partial(rcnn_detections, size=(80, 90), scale=jnp.ones(2), stds=(0.1, 0.1, 0.2, 0.2)))
    alone = run(rois[:25], jnp.ones(25, bool), logits[:25], deltas[:25])
    padded = run(rois, jnp.arange(40) < 25, logits, deltas)
    assert 20 < alone.valid.sum() < 75
    for name, array in alone._asdict().items():
        np.testing.assert_array_equal(getattr(padded, name)[alone.valid], array[alone.valid])
    np.testing.assert_array_equal(padded.valid, alone.valid)
