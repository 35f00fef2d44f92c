"""The sheet of attention: where a pixel is in what a model sees, which maps are found, and what is drawn of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from rmt_jax.convert import Preprocessing, Weights, read_weights
from rmt_jax.models import attention_map, variant
from rmt_jax.training.attention_sheet import Maps, check_choice, draw_attention, find_maps, view

WEIGHTS = "notebooks/rmt_nano_digits.safetensors"
HALF = (0.5, 0.5, 0.5)


def weights(task="classification", crop_ratio=0.5):
    config = variant("rmt_nano", num_classes=10)
    return Weights("rmt_nano", task, config, {}, preprocessing=Preprocessing(64, crop_ratio, "bicubic", HALF, HALF))


@pytest.fixture
def dotted():
    """A white square at x 120..123, y 60..63 of a black picture of 200x100 pixels."""
    pixels = np.zeros((100, 200, 3), np.uint8)
    pixels[60:64, 120:124] = 255
    return Image.fromarray(pixels)


def test_a_pixel_is_found_again_in_the_crop(dotted):
    shown = view(weights(), dotted)  # resized to 256x128, of which the middle 64x64
    assert shown.picture.shape == (64, 64, 3)
    x, y = shown.place(dotted, (122, 62))
    assert shown.picture[y, x].min() > 200
    assert shown.picture[y, x - 6].max() < 50
    np.testing.assert_allclose(shown.images[0], (shown.picture / 255 - 0.5) / 0.5, atol=1e-6)
    assert shown.place(dotted, None) == (32, 32)


@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_dense_predictions_see_all_of_a_picture(task, dotted):
    shown = view(weights(task), dotted)
    assert abs(shown.picture.shape[1] - 2 * shown.picture.shape[0]) <= 1
    x, y = shown.place(dotted, (122, 62))
    assert shown.picture[y, x].min() > 200
    assert shown.place(dotted, (199, 99)) < shown.picture.shape[1::-1]
    with pytest.raises(ValueError, match=f"models of {task} see all of a picture"):
        view(weights(task), dotted, 64)


@pytest.mark.parametrize(
    ("position", "message"),
    [
        ((200, 5), r"--position 200 5: the picture has 200x100 pixels, X from 0 to 199 and Y from 0 to 99"),
        ((5, -1), "--position 5 -1: the picture has"),
        ((74, 50), r"the model sees the middle of the picture alone, X from 75 to 124 and Y from 25 to 74\."),
        ((100, 75), "--position 100 75: the model sees the middle"),
    ],
)
def test_positions_that_are_not_seen(position, message, dotted):
    shown = view(weights(), dotted)
    with pytest.raises(ValueError, match=message):
        shown.place(dotted, position)
    for inside in ((75, 25), (124, 74)):
        assert max(shown.place(dotted, inside)) < 64


@pytest.mark.parametrize(
    ("blocks", "heads", "message"),
    [
        ([(0, -1)], None, "--stage 0: the stages are 1 to 4"),
        ([(1, -1), (5, -1)], None, "--stage 5: the stages"),
        ([(3, 0), (3, 2)], None, "--block 2: stage 3 has the blocks 0 to 1"),
        ([(1, -2)], None, "--block -2: stage 1 has the blocks 0 to 0"),
        ([(2, 0), (1, 0)], [3], "--head 3: stage 1 has the heads 0 to 1"),
        ([(1, 0)], [-1], "--head -1"),
    ],
)
def test_choices_that_are_not_there(blocks, heads, message):
    with pytest.raises(ValueError, match=message):
        check_choice(variant("rmt_nano"), blocks, heads)
    check_choice(variant("rmt_nano"), [(3, 0), (3, -2), (1, 0)], [1])


def test_maps_are_those_of_the_model_at_the_cell_of_the_pixel():
    model = read_weights(WEIGHTS).to_model()
    images = jnp.asarray(np.random.default_rng(0).standard_normal((1, 32, 48, 3)), jnp.float32)
    second, third = find_maps(model, images, (41, 17), [(2, -1), (3, 0)])
    assert (second.stage, second.block, second.stride) == (2, 0, 8)
    assert (third.stage, third.block, third.stride) == (3, 0, 16)
    assert (second.attention.shape, third.attention.shape) == ((4, 4, 6), (6, 2, 3))
    expected = jax.jit(functools.partial(attention_map, stage=3, block=0, position=(1, 2)))(model, images)
    np.testing.assert_allclose(third.attention, expected[0], rtol=1e-4, atol=1e-6)
    for found in (second, third):
        np.testing.assert_allclose(found.prior.sum(axis=(1, 2)), 1, rtol=1e-5)
        assert np.unravel_index(found.prior[0].argmax(), found.prior.shape[1:]) == (
            17 // found.stride,
            41 // found.stride,
        )


def some_maps(stage, heads, size, stride):
    weights = np.random.default_rng(stage).dirichlet(np.ones(size**2), heads).reshape(heads, size, size)
    return Maps(stage, 1, stride, weights, np.full_like(weights, 1 / size**2))


def drawn(figure):
    """{title: overlaid map} of the panels that have one, in order."""
    return {axes.get_title(): axes.images[1].get_array() for axes in figure.axes if len(axes.images) == 2}


def test_every_panel_shows_the_weights_it_names(dotted):
    shown, found = view(weights(), dotted), some_maps(2, 3, 8, 8)
    figure = draw_attention(shown, (20, 9), [found], "$title")
    assert figure._suptitle.get_text().startswith("$title\nmoved: ")
    panels = drawn(figure)
    assert [title.split("\n")[0].split(":")[0] for title in panels] == [
        "mean of 3 heads", "decay alone, mean", "head 0", "head 1", "head 2"
    ]  # fmt: skip
    mean = found.attention.mean(axis=0)
    np.testing.assert_allclose(panels[f"mean of 3 heads\nmax {100 * mean.max():.2g} %"], np.sqrt(mean / mean.max()))
    head = found.attention[2]
    moved = 0.5 * np.abs(head - 1 / 64).sum()
    title = f"head 2: {100 * moved:.0f} % moved\nmax {100 * head.max():.2g} %"
    np.testing.assert_allclose(panels[title], np.sqrt(head / head.max()))
    picture = figure.axes[0]
    assert picture.get_title() == "stage 2, block 1\n8x8 positions"
    np.testing.assert_array_equal(picture.images[0].get_array(), shown.picture)
    assert picture.patches[0].get_xy() == (15.5, 7.5)  # the cell of the pixel
    marks = [axes.lines[0].get_xydata().tolist() for axes in figure.axes[:6]]
    assert marks == [[[20, 9]], *[[[19.5, 11.5]]] * 5]  # the pixel, the middle of its cell


def test_of_several_stages_some_heads_and_of_one_all():
    shown, several = view(weights(), Image.new("RGB", (64, 64))), [some_maps(1, 2, 16, 4), some_maps(3, 9, 4, 16)]
    heads = [title.split(":")[0] for title in drawn(draw_attention(shown, (0, 0), several, "")) if "head " in title]
    assert heads == ["head 0", "head 1", "head 0", "head 3", "head 5", "head 8"]
    assert sum("head " in title for title in drawn(draw_attention(shown, (0, 0), several[1:], ""))) == 9
    (title,) = (title for title in drawn(draw_attention(shown, (0, 0), several[:1], "", [1])) if "head " in title)
    assert title.startswith("head 1: ")


def test_cells_beyond_the_picture_are_cut_off():
    """33 pixels are three positions of stride 16, the last of one pixel."""
    pixels = np.zeros((33, 33, 3), np.uint8)
    shown = view(weights(), Image.fromarray(pixels))._replace(picture=pixels)
    axes = draw_attention(shown, (32, 0), [some_maps(3, 2, 3, 16)], "").axes[1]
    assert axes.images[1].get_extent() == [-0.5, 47.5, 47.5, -0.5]
    assert (axes.get_xlim(), axes.get_ylim()) == ((-0.5, 32.5), (32.5, -0.5))
