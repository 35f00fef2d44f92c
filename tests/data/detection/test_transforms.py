"""Every step against the numbers recorded from mmdet, to the bit, and what is drawn."""

import dataclasses

import numpy as np
import pytest

from rmt_jax.data import DetectionDataConfig
from rmt_jax.data.detection.changes import Change, Crop, draw_changes, rescaled_sizes
from rmt_jax.data.detection.masks import bitmap, bitmaps
from rmt_jax.data.detection.transforms import (
    Instances,
    canvas_size,
    change,
    crop,
    flip,
    place_image,
    place_instances,
    resize,
    scale_factor,
)
from rmt_jax.data.resize import rescaled_size, resize_image
from tests.golden import golden

EXPECTED = golden.expected("pipe_detection")
MEAN, STD = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])


def rgb(bgr: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(bgr[..., ::-1])


IMAGE = rgb(EXPECTED["in/img_bgr"])
INSTANCES = Instances(EXPECTED["in/gt_bboxes"], np.arange(3, dtype=np.int32), EXPECTED["in/gt_masks"])


@pytest.mark.parametrize(("name", "scale"), [("down", (50, 37)), ("up", (140, 96))])
def test_resize(name: str, scale: tuple[int, int]) -> None:
    size = rescaled_size(60, 83, scale)
    image, instances = resize(IMAGE, INSTANCES, size)
    np.testing.assert_array_equal(image, rgb(EXPECTED[f"{name}_img"]))
    np.testing.assert_array_equal(instances.boxes, EXPECTED[f"{name}_bboxes"])
    np.testing.assert_array_equal(instances.masks, EXPECTED[f"{name}_masks"])
    np.testing.assert_array_equal(scale_factor((60, 83), size), EXPECTED[f"{name}_scale_factor"])


def test_training_example_of_1x() -> None:
    """Resized, flipped, normalised and padded; masks are packed as they were when they were recorded."""
    drawn = Change(flip=True, crop=None, size=(96, 133))
    image, instances = change(IMAGE, INSTANCES, drawn, flip_first=False)
    np.testing.assert_array_equal(image, rgb(EXPECTED["up_flip_img"]))
    np.testing.assert_array_equal(instances.boxes, EXPECTED["up_flip_bboxes"])
    canvas = (96, 160)
    placed = {**place_image(image, canvas), **place_instances(instances, canvas, 5)}
    np.testing.assert_array_equal(placed["masks"][:3], EXPECTED["final_masks"])
    assert not placed["masks"][3:].any()
    np.testing.assert_array_equal(placed["boxes"][:3], EXPECTED["up_flip_bboxes"])
    np.testing.assert_array_equal(placed["valid"], [True, True, True, False, False])
    np.testing.assert_array_equal(placed["labels"], [0, 1, 2, 0, 0])
    np.testing.assert_array_equal(placed["image_size"], [96, 133])
    np.testing.assert_array_equal(placed["pad_size"], [96, 160])
    # Upstream normalises in float32 before it pads; the task does it afterwards, and sets what is padding to 0.
    normal = np.where(np.arange(160)[:, None] < 133, (placed["image"] - MEAN) / STD, 0)
    np.testing.assert_allclose(golden.subsample(normal, 7), EXPECTED["final_img"], atol=1e-6)


def test_crop() -> None:
    image, instances = crop(IMAGE, INSTANCES, (13, 27), (40, 50))
    np.testing.assert_array_equal(image, rgb(EXPECTED["crop_img"]))
    np.testing.assert_array_equal(instances.boxes, EXPECTED["crop_bboxes"])
    # The last object lies above the crop. Labels were recorded as 1, 2 for what is 0, 1 here.
    np.testing.assert_array_equal(instances.labels, [0, 1])
    np.testing.assert_array_equal(EXPECTED["crop_labels"], [1, 2])
    np.testing.assert_array_equal(instances.masks, EXPECTED["crop_masks"])


def test_evaluation_example() -> None:
    size = rescaled_size(60, 83, (133, 80))
    placed = place_image(resize_image(IMAGE, size), (96, 128))
    np.testing.assert_array_equal(placed["image_size"], [80, 111])
    np.testing.assert_array_equal(placed["pad_size"], [96, 128])
    np.testing.assert_array_equal(
        scale_factor((60, 83), size), np.float32([1.3373494148254395, 1.3333333730697632] * 2)
    )
    inside = (np.arange(96)[:, None, None] < 80) & (np.arange(128)[:, None] < 111)
    normal = np.where(inside, (placed["image"] - MEAN) / STD, 0)
    np.testing.assert_allclose(golden.subsample(normal, 5), EXPECTED["test_img"], atol=1e-6)


def test_steps_of_3x_in_their_order() -> None:
    drawn = Change(flip=True, crop=Crop((96, 133), (13, 27), (40, 50)), size=(64, 80))
    image, instances = change(IMAGE, INSTANCES, drawn, flip_first=True)
    other, others = flip(IMAGE, INSTANCES)
    other, others = resize(np.ascontiguousarray(other), others, (96, 133))
    other, others = crop(other, others, (13, 27), (40, 50))
    other, others = resize(other, others, (64, 80))
    np.testing.assert_array_equal(image, other)
    np.testing.assert_array_equal(instances.boxes, others.boxes)
    np.testing.assert_array_equal(instances.masks, others.masks)
    # A picture that was flipped last has other pixels.
    assert (change(IMAGE, INSTANCES, drawn, flip_first=False)[0] != image).any()


def test_pictures_without_objects() -> None:
    nothing = Instances(np.zeros((0, 4), np.float32), np.zeros(0, np.int32), np.zeros((0, 60, 83), np.uint8))
    drawn = Change(flip=True, crop=Crop((96, 133), (13, 27), (40, 50)), size=(64, 80))
    _, instances = change(IMAGE, nothing, drawn, flip_first=True)
    assert instances.masks is not None
    assert instances.masks.shape == (0, 64, 80)
    placed = place_instances(instances, (64, 96), 2)
    assert placed["masks"].shape == (2, 64, 12)
    assert not placed["valid"].any()


def test_bitmaps_of_outlines() -> None:
    corners = np.array([2, 1, 8, 1, 8, 5, 2, 5], float)
    mask = bitmap((corners,), (10, 12))
    assert mask.sum() == 24
    assert mask[1:5, 2:8].all()
    both = bitmap((corners, corners + 1), (10, 12))
    assert both[1:5, 2:8].all()
    assert both[2:6, 3:9].all()
    assert both.sum() == 24 + 24 - 15
    assert bitmaps([], (3, 4)).shape == (0, 3, 4)
    with pytest.raises(ValueError, match="no mask"):
        bitmap(None, (3, 4))


def test_rescaled_sizes_of_many() -> None:
    table = golden.expected("pipe_rescale_sizes")["table"]
    np.testing.assert_array_equal(rescaled_sizes(table[:, :2], table[:, 2:4]), table[:, 4:])


THREE = DetectionDataConfig(
    scales=tuple((1333, short) for short in range(480, 801, 32)),
    crop_scales=((1333, 400), (1333, 500), (1333, 600)),
    flip_first=True,
)
SIZES = np.random.default_rng(0).integers(32, 900, (4000, 2))


def test_3x_draws_what_upstream_can_draw() -> None:
    drawn = draw_changes(SIZES, THREE, np.random.default_rng(1))
    assert 0.45 < drawn.flip.mean() < 0.55
    assert 0.45 < drawn.cropped.mean() < 0.55
    for index, (height, width) in enumerate(SIZES.tolist()):
        one = drawn[index]
        if one.crop is not None:
            firsts = [rescaled_size(height, width, scale) for scale in THREE.crop_scales]
            assert one.crop.resized in firsts
            for whole, side, start in zip(one.crop.resized, one.crop.sides, one.crop.corner, strict=True):
                assert min(whole, 384) <= side <= min(whole, 600)
                assert 0 <= start <= whole - side
            height, width = one.crop.sides
        assert one.size in [rescaled_size(height, width, scale) for scale in THREE.scales]
        canvas = canvas_size(one.size, THREE.canvas)
        assert canvas in ((800, 1344), (1344, 800))
        assert one.size[0] <= canvas[0]
        assert one.size[1] <= canvas[1]
    crops = drawn.crop[drawn.cropped]
    assert {384, 600} <= set(crops[:, 2].ravel().tolist())  # both ends of the range
    shorts = drawn.size[SIZES.max(axis=1) < 1.5 * SIZES.min(axis=1)].min(axis=1)
    assert len(set(shorts.tolist()) & {*range(480, 801, 32)}) == 11
    # Some lie on another canvas than their size would say.
    turned = (drawn.size[:, 1] > drawn.size[:, 0]) != (SIZES[:, 1] > SIZES[:, 0])
    assert 0.05 < turned[drawn.cropped].mean() < 0.5
    assert (turned & ~drawn.cropped).sum() == (
        (drawn.size[:, 0] == drawn.size[:, 1]) & (SIZES[:, 1] > SIZES[:, 0]) & ~drawn.cropped
    ).sum()  # only those that have become square


def test_1x_draws_a_flip_and_nothing_else() -> None:
    drawn = draw_changes(
        SIZES, dataclasses.replace(THREE, scales=((1333, 800),), crop_scales=()), np.random.default_rng(1)
    )
    assert 0.45 < drawn.flip.mean() < 0.55
    assert not drawn.cropped.any()
    np.testing.assert_array_equal(drawn.size, [rescaled_size(*size, (1333, 800)) for size in SIZES.tolist()])
    never = draw_changes(SIZES, dataclasses.replace(THREE, flip=0.0), np.random.default_rng(1))
    assert not never.flip.any()
