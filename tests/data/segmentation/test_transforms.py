"""Every step against the numbers recorded from mmsegmentation, to the bit."""

import dataclasses

import numpy as np
import pytest

from rmt_jax.data import SegmentationDataConfig
from rmt_jax.data.resize import rescaled_size, resize_image, resize_labels
from rmt_jax.data.segmentation.labels import reduce_zero_label
from rmt_jax.data.segmentation.transforms import (
    Photometric,
    choose_crop,
    crop,
    draw_crops,
    draw_photometric,
    draw_scale,
    pad,
    photometric,
    train_transform,
)
from tests.data.segmentation import standin
from tests.golden import golden

EXPECTED = golden.expected("pipe_segmentation")
CROP, CAT_MAX_RATIO = (32, 40), 0.75  # of the fixture


def rgb(bgr: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(bgr[..., ::-1])


IMAGE = rgb(EXPECTED["in/img_bgr"])


def test_rescaled_sizes() -> None:
    table = golden.expected("pipe_rescale_sizes")["table"]
    ours = [rescaled_size(h, w, (longest, shortest)) for h, w, longest, shortest, _, _ in table.tolist()]
    np.testing.assert_array_equal(ours, table[:, 4:])


def test_a_very_thin_picture_keeps_a_pixel() -> None:
    assert rescaled_size(1, 10_000, (2048, 512)) == (1, 2048)


def test_zero_label_is_reduced() -> None:
    np.testing.assert_array_equal(reduce_zero_label(EXPECTED["in/seg_png"]), EXPECTED["seg_reduced"])
    everything = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(reduce_zero_label(everything), [255, *range(254), 255])


def test_resize() -> None:
    size = rescaled_size(70, 97, (180, 45))
    np.testing.assert_array_equal(resize_image(IMAGE, size), rgb(EXPECTED["resized_img"]))
    np.testing.assert_array_equal(resize_labels(EXPECTED["seg_reduced"], size), EXPECTED["resized_seg"])


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("brightness_+17.3", Photometric(brightness=17.3)),
        ("brightness_-31.9", Photometric(brightness=-31.9)),
        ("contrast_1.37", Photometric(contrast=1.37)),
        ("contrast_0.52", Photometric(contrast=0.52)),
        ("saturation_1.41", Photometric(saturation=1.41)),
        ("hue_-11", Photometric(hue=-11)),
        ("hsv2bgr_roundtrip", Photometric(hue=0)),  # not the same picture: hue has 180 steps
    ],
)
def test_photometric_steps(name: str, change: Photometric) -> None:
    np.testing.assert_array_equal(photometric(IMAGE, change), rgb(EXPECTED[name]))


def upstream_draw(random: np.random.RandomState) -> Photometric:
    """A change drawn from NumPy's old generator as upstream draws it, in its order."""
    brightness = random.uniform(-32, 32) if random.randint(2) else None
    first = bool(random.randint(2))
    contrast = random.uniform(0.5, 1.5) if first and random.randint(2) else None
    saturation = random.uniform(0.5, 1.5) if random.randint(2) else None
    hue = random.randint(-18, 18) if random.randint(2) else None
    if not first and random.randint(2):
        contrast = random.uniform(0.5, 1.5)
    return Photometric(brightness, contrast, first, saturation, hue)


def test_photometric_as_a_whole() -> None:
    ours = [photometric(IMAGE, upstream_draw(np.random.RandomState(seed))) for seed in range(6)]
    np.testing.assert_array_equal(
        golden.subsample(np.stack(ours)[..., ::-1], 11), EXPECTED["photometric_np_random_seed_0_to_5"]
    )


def test_photometric_draws_are_spread_as_upstreams() -> None:
    rng = np.random.default_rng(0)
    draws = [dataclasses.asdict(draw_photometric(rng)) for _ in range(4000)]
    for name, low, high in (
        ("brightness", -32, 32),
        ("contrast", 0.5, 1.5),
        ("saturation", 0.5, 1.5),
        ("hue", -18, 17),
    ):
        values = np.array([draw[name] for draw in draws if draw[name] is not None])
        assert abs(len(values) - 2000) < 150
        assert low <= values.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < values.max() <= high
        assert abs(values.mean() - (low + high) / 2) < 0.03 * (high - low)
    assert abs(np.mean([draw["contrast_first"] for draw in draws]) - 0.5) < 0.04


def test_crops_are_chosen_from_the_recorded_draws() -> None:
    labels = EXPECTED["in/crop_seg"]
    for tries, final in zip(EXPECTED["crop_tries_y1y2x1x2"], EXPECTED["crop_final_y1y2x1x2"], strict=True):
        drawn = [(top, left) for top, _, left, _ in tries.tolist() if top >= 0]
        left_over = iter([*drawn, (0, 0)])
        corner = choose_crop(labels, left_over, CROP, CAT_MAX_RATIO)
        assert list(left_over) == [(0, 0)]  # as many were looked at as upstream did
        assert corner == drawn[-1] == (final[0], final[2])
        np.testing.assert_array_equal(crop(labels, corner, CROP), labels[final[0] : final[1], final[2] : final[3]])


@pytest.mark.parametrize("labels", [np.zeros((64, 80), np.uint8), np.full((64, 80), 255, np.uint8)])
def test_the_eleventh_crop_is_taken_whatever_it_shows(labels: np.ndarray) -> None:
    corners = list(draw_crops(labels.shape, CROP, np.random.default_rng(0)))
    assert len(corners) == 11
    assert choose_crop(labels, iter(corners), CROP, CAT_MAX_RATIO) == corners[-1]
    assert choose_crop(labels, iter(corners), CROP, 1.0) == corners[0]


def test_crops_reach_every_edge() -> None:
    rng = np.random.default_rng(0)
    corners = np.array([corner for _ in range(200) for corner in draw_crops((34, 50), CROP, rng)])
    assert corners.min(0).tolist() == [0, 0]
    assert corners.max(0).tolist() == [2, 10]
    assert set(draw_crops((20, 40), CROP, rng)) == {(0, 0)}  # smaller than the crop


def test_padding_becomes_upstreams_once_normalised() -> None:
    image, labels = (array[4:29, 25:65] for array in (IMAGE, EXPECTED["in/crop_seg"]))  # what the fixture pads
    padded = pad(image, labels, CROP)
    height, width = padded["picture_size"].tolist()
    assert (height, width) == (25, 40)
    mean, std = np.float32([123.675, 116.28, 103.53]), np.float32([58.395, 57.12, 57.375])
    normalised = (padded["image"].astype(np.float32) - mean) / std
    normalised[height:], normalised[:, width:] = 0, 0
    np.testing.assert_array_equal(normalised, EXPECTED["norm_pad_img"])
    np.testing.assert_array_equal(padded["label"], EXPECTED["norm_pad_seg"])


def test_scales_are_uniform_and_rounded_down() -> None:
    config, rng = SegmentationDataConfig(), np.random.default_rng(0)
    scales = np.array([draw_scale(config, rng) for _ in range(2000)])
    assert scales.min(0).tolist() == [1024, 256]
    assert abs(scales[:, 0].mean() - 1.25 * 2048) < 40
    assert 4080 < scales[:, 0].max() < 4096
    assert (scales[:, 0] // 4 - scales[:, 1]).max() <= 0


def test_training_examples_have_one_size_and_depend_on_the_generator_alone() -> None:
    image, labels = standin.example(0)
    one, again, other = (train_transform(image, labels, standin.SMALL, np.random.default_rng(s)) for s in (0, 0, 1))
    for key, value in one.items():
        np.testing.assert_array_equal(value, again[key])
    assert not np.array_equal(one["image"], other["image"])
    assert {key: (value.shape, value.dtype) for key, value in one.items()} == {
        "image": ((32, 40, 3), np.uint8),
        "label": ((32, 40), np.uint8),
        "picture_size": ((2,), np.int32),
    }


def test_nothing_random_is_a_resize() -> None:
    """Labels stay with their pixels: with colours that say the class, picture and labels agree after every change."""
    _, labels = standin.example(0)
    image = np.repeat(labels[..., None], 3, -1)
    config = SegmentationDataConfig(
        scale=(60, 40), ratio_range=(1.0, 1.0), crop_size=(48, 64), flip=0.0, photometric=False
    )
    plain = train_transform(image, labels, config, np.random.default_rng(0))
    np.testing.assert_array_equal(plain["image"][:40, :60], image)
    np.testing.assert_array_equal(plain["label"][:40, :60], labels)
    assert (plain["label"][40:] == 255).all()
    assert (plain["label"][:, 60:] == 255).all()
    flipped = train_transform(image, labels, dataclasses.replace(config, flip=1.0), np.random.default_rng(0))
    np.testing.assert_array_equal(flipped["label"][:40, :60], labels[:, ::-1])
    cropped = train_transform(
        image, labels, dataclasses.replace(config, crop_size=(16, 16), flip=0.5), np.random.default_rng(0)
    )
    np.testing.assert_array_equal(cropped["image"], np.repeat(cropped["label"][..., None], 3, -1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": (512, 2048)}, r"scale=\(512, 2048\): expected \(longest, shortest\)"),
        ({"ratio_range": (2.0, 0.5)}, r"ratio_range=\(2\.0, 0\.5\): expected \(smallest, largest\)"),
        ({"ratio_range": (0.001, 1.0)}, "below one pixel"),
        ({"crop_size": (0, 512)}, r"crop_size=\(0, 512\): expected \(height, width\)"),
        ({"cat_max_ratio": 0.0}, r"cat_max_ratio=0\.0: expected a share such as 0\.75, or 1"),
        ({"flip": 1.5}, r"flip=1\.5: expected a probability"),
        ({"num_classes": 255}, r"num_classes=255: expected 0 \(what the data set says\) to 254"),
    ],
)
def test_impossible_configurations(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=rf"data\.segmentation\.{message}" if "=" in message else message):
        SegmentationDataConfig(**changes)
