"""Objects drawn into pictures: where they are, in the colours of their classes, enlarged where pictures are small."""

import pathlib

import numpy as np
from PIL import Image

from rmt_jax.data.segmentation import palette
from rmt_jax.training.object_figures import Found, draw_objects, plot_objects

NAMES = ("cat", "dog", "a class with a very long name that no picture has room for")
IMAGE = np.full((400, 320, 3), 200, np.uint8)


def found(*, masks: bool) -> Found:
    """Two objects; the mask of each is the lower half of its box."""
    boxes = np.array([[20, 40, 120, 140], [150, 200, 300, 390]], np.float32)
    covered = np.zeros((2, 400, 320), bool)
    covered[0, 90:140, 20:120], covered[1, 295:390, 150:300] = True, True
    return Found(boxes, np.array([0.9, 0.2]), np.array([1, 0]), covered if masks else None)


def test_boxes_and_masks_are_in_the_colours_of_their_classes() -> None:
    drawn, colours = draw_objects(IMAGE, found(masks=True), NAMES), palette(len(NAMES))
    assert drawn.shape == IMAGE.shape
    np.testing.assert_array_equal(drawn[100, 20], colours[1])  # the left edges
    np.testing.assert_array_equal(drawn[250, 150], colours[0])
    np.testing.assert_array_equal(drawn[120, 60], (100 + 0.5 * colours[1]).astype(np.uint8))  # half and half
    np.testing.assert_array_equal(drawn[80, 60], IMAGE[80, 60])
    np.testing.assert_array_equal(drawn[10, 310], IMAGE[10, 310])
    assert (IMAGE == 200).all()  # nothing is drawn into what was given


def test_small_pictures_are_enlarged_with_their_boxes() -> None:
    small = Found(np.array([[10, 20, 40, 50]], np.float32), np.array([0.5]), np.array([2]), None)
    drawn = draw_objects(IMAGE[:80, :64], small, NAMES)
    assert drawn.shape == (320, 256, 3)
    np.testing.assert_array_equal(drawn[150, 40], palette(len(NAMES))[2])


def test_pictures_without_objects_stay_as_they_are() -> None:
    nothing = found(masks=True).above(0.95)
    assert nothing.masks is not None
    assert (len(nothing.boxes), len(nothing.masks)) == (0, 0)
    np.testing.assert_array_equal(draw_objects(IMAGE, nothing, NAMES), IMAGE)


def test_a_sheet_has_a_row_for_each_picture(tmp_path: pathlib.Path) -> None:
    surest = found(masks=False).above(0.5)
    assert (surest.labels.tolist(), surest.masks) == ([1], None)
    heights = []
    for count in (1, 2):
        path = tmp_path / f"{count}.png"
        plot_objects([(IMAGE, found(masks=True), surest)] * count, NAMES, path)
        with Image.open(path) as sheet:
            heights.append(sheet.height)
    assert heights[1] == 2 * heights[0]
