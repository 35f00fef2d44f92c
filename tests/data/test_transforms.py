import dataclasses
import io
import json
import pathlib
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_image

from rmt_jax.data import AugmentConfig, CorruptImageError, DataConfig, RandAugmentConfig, decode
from rmt_jax.data.color import color_jitter, three_augment
from rmt_jax.data.label_maps import warp_map
from rmt_jax.data.randaugment import draw_operations, rand_augment
from rmt_jax.data.transforms import (
    crop_and_resize,
    eval_transform,
    horizontal_flip,
    random_affine,
    random_crop_box,
    resize_center_crop,
    token_label_transform,
    train_transform,
)

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden"
CASES = json.loads((GOLDEN / "preprocessing.json").read_text())["cases"]


def photograph(name="china"):
    return Image.fromarray(load_sample_image(f"{name}.jpg"))


def encode(image, format, **options):
    data = io.BytesIO()
    image.save(data, format, **options)
    return data.getvalue()


def picture(width=40, height=30, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("case", CASES)
def test_evaluation_transform_is_upstreams(case):
    crop, resize = CASES[case]["crop"], CASES[case]["resize"]
    # 0.96 and not 224 / 233: the ratio as a recipe states it must lead to the resize that upstream used.
    crop_ratio = {256: 0.875, 233: 0.96, 384: 1.0}[resize]
    config = DataConfig(name="folder", image_size=crop, crop_ratio=crop_ratio)
    pixels = eval_transform(photograph(case.split("/")[0]), config)
    normalised = np.load(GOLDEN / "preprocessing.npz")[case].transpose(1, 2, 0)
    expected = (normalised * np.array(config.std) + np.array(config.mean)) * 255
    assert pixels.shape == (crop, crop, 3)
    assert pixels.dtype == np.uint8
    np.testing.assert_allclose(pixels[::8, ::8], expected, atol=0.01)  # the same grey level everywhere
    mean = (pixels / 255 - config.mean) / config.std
    np.testing.assert_allclose(mean.mean((0, 1)), CASES[case]["mean"], atol=1e-5)


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 64), st.sampled_from([0.5, 0.875, 0.96, 1.0]))
def test_resize_center_crop_has_the_size_asked_for(width, height, size, crop_ratio):
    image = resize_center_crop(Image.new("RGB", (width, height), (9, 8, 7)), size, crop_ratio)
    # One colour everywhere: the crop never reaches outside the picture.
    assert image.getcolors() == [(size * size, (9, 8, 7))]


RED = Image.new("RGB", (4, 4), (200, 20, 30))
KINDS = {
    "grey_jpeg": (encode(Image.new("L", (4, 4), 77), "JPEG"), (77, 77, 77)),
    "grey_png": (encode(Image.new("L", (4, 4), 77), "PNG"), (77, 77, 77)),
    "grey_alpha": (encode(Image.new("LA", (4, 4), (50, 3)), "PNG"), (50, 50, 50)),
    "grey_16_bit": (encode(Image.fromarray(np.full((4, 4), 0x8040, np.uint16)), "PNG"), (128, 128, 128)),
    "bilevel": (encode(Image.new("1", (4, 4), 1), "PNG"), (255, 255, 255)),
    "rgb": (encode(RED, "PNG"), (200, 20, 30)),
    "rgba": (encode(Image.new("RGBA", (4, 4), (200, 20, 30, 0)), "PNG"), (200, 20, 30)),
    "palette": (encode(RED.quantize(4), "PNG"), (200, 20, 30)),
    "gif": (encode(RED.quantize(4), "GIF"), (200, 20, 30)),
    "webp": (encode(RED, "WEBP", lossless=True), (200, 20, 30)),
    "cmyk_cyan": (encode(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "JPEG", quality=100), (0, 255, 255)),
    "cmyk_black": (encode(Image.new("CMYK", (8, 8), (0, 0, 0, 255)), "JPEG", quality=100), (0, 0, 0)),
}


@pytest.mark.parametrize(("data", "expected"), KINDS.values(), ids=KINDS)
def test_every_kind_of_picture_becomes_rgb(data, expected):
    image = decode(data, "x")
    assert image.mode == "RGB"
    assert np.abs(np.asarray(image).astype(int) - expected).max() <= 2


def test_palette_transparency_is_dropped_without_a_warning():
    palette = picture().quantize(4)
    data = encode(palette, "PNG", transparency=b"\x00\x40\x80\xff")
    assert Image.open(io.BytesIO(data)).info["transparency"] == b"\x00\x40\x80\xff"
    np.testing.assert_array_equal(decode(data, "x"), decode(encode(palette, "PNG"), "x"))


def test_exif_orientation_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees to view"
    assert decode(encode(Image.new("RGB", (30, 20)), "JPEG", exif=exif), "x").size == (30, 20)


@pytest.mark.parametrize(
    "data", [b"", b"not a picture", encode(picture(), "JPEG")[:-400], encode(picture(), "PNG")[:200]]
)
def test_damaged_pictures_name_their_record(data):
    with pytest.raises(CorruptImageError, match=r"'n01440764/n01440764_18\.JPEG'"):
        decode(data, "n01440764/n01440764_18.JPEG")


@settings(deadline=None)
@given(st.sampled_from(["JPEG", "PNG", "WEBP"]), st.integers(0, 10**6), st.binary(min_size=1, max_size=8))
def test_no_damage_raises_anything_else(format, position, noise):
    data = bytearray(encode(picture(), format))
    position %= len(data)
    data[position : position + len(noise)] = noise
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own remarks on the damage
        try:
            image = decode(bytes(data), "x")
        except CorruptImageError:
            return
    assert image.mode == "RGB"


pairs = st.tuples(st.floats(0.05, 1.0), st.floats(0.05, 1.0)).map(lambda pair: (min(pair), max(pair)))


@given(st.integers(1, 500), st.integers(1, 500), pairs, st.integers(0, 10**6))
def test_random_crop_box_lies_inside_the_picture(width, height, scale, seed):
    left, top, right, bottom = random_crop_box(width, height, np.random.default_rng(seed), scale, (3 / 4, 4 / 3))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


def test_random_crop_box_draws_area_and_aspect_from_their_ranges():
    rng = np.random.default_rng(0)
    boxes = np.array([random_crop_box(1000, 800, rng, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(4000)])
    widths, heights = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    share, aspect = widths * heights / 800_000, widths / heights
    assert 0.079 < share.min() < 0.1
    assert 0.9 < share.max() <= 1.0
    assert 0.745 < aspect.min() < 0.76
    assert 1.32 < aspect.max() < 1.34
    # A wider box than high as often as the other way round, up to those that do not fit.
    assert abs(np.log(aspect).mean()) < 0.05
    assert np.ptp(boxes[:, 0]) > 600
    assert np.ptp(boxes[:, 1]) > 500


@pytest.mark.parametrize(
    ("size", "box"), [((1000, 10), (493, 0, 506, 10)), ((10, 1000), (0, 493, 10, 506)), ((90, 100), (0, 0, 90, 100))]
)
def test_random_crop_box_falls_back_to_the_largest_centred_box(size, box):
    # With scale 1 no drawn box fits: it has the area of the whole picture in another shape.
    assert random_crop_box(*size, np.random.default_rng(0), (1.0, 1.0), (3 / 4, 4 / 3)) == box


def test_crop_and_resize_is_crop_then_resize_away_from_the_border():
    image = photograph()
    for seed in range(5):
        box = random_crop_box(*image.size, np.random.default_rng(seed), (0.08, 1.0), (3 / 4, 4 / 3))
        ours = crop_and_resize(image, box, 64)
        plain = image.crop(box).resize((64, 64), Image.Resampling.BICUBIC)
        difference = np.abs(np.asarray(ours).astype(int) - np.asarray(plain))
        assert ours.size == (64, 64)
        assert difference[3:-3, 3:-3].max() <= 1


def test_interpolation_takes_effect():
    image = photograph()
    pixels = {
        name: eval_transform(image, DataConfig(name="folder", image_size=64, interpolation=name))
        for name in ("bilinear", "bicubic")
    }
    assert np.abs(pixels["bilinear"].astype(int) - pixels["bicubic"]).max() > 5


def test_horizontal_flip():
    image, rng = picture(), np.random.default_rng(0)
    np.testing.assert_array_equal(horizontal_flip(image, rng, 1.0), np.asarray(image)[:, ::-1])
    np.testing.assert_array_equal(horizontal_flip(image, rng, 0.0), image)
    flipped = sum(np.array_equal(horizontal_flip(image, rng, 0.25), image) for _ in range(1000))
    assert 700 < flipped < 800


def centroid(image):
    grey = np.asarray(image)[..., 0].astype(float)
    return np.array([(grey.sum(0) @ np.arange(64)), (grey.sum(1) @ np.arange(64))]) / grey.sum()


def dot(x, y, side=5):
    image = Image.new("RGB", (64, 64))
    image.paste((255, 255, 255), (x - side // 2, y - side // 2, x + side // 2 + 1, y + side // 2 + 1))
    return image


def test_random_affine_without_change_is_the_identity():
    np.testing.assert_array_equal(random_affine(picture(), np.random.default_rng(0)), picture())


def test_random_affine_shifts_both_ways_up_to_the_fraction():
    rng = np.random.default_rng(0)
    shifts = np.array([centroid(random_affine(dot(32, 32), rng, translate=0.25)) for _ in range(200)]) - 32
    assert (shifts.max(0) > 14).all()
    assert (shifts.min(0) < -14).all()
    assert (np.abs(shifts) < 16.2).all()


def test_random_affine_turns_about_the_centre():
    rng = np.random.default_rng(0)
    points = np.array([centroid(random_affine(dot(52, 32), rng, rotate=90.0)) for _ in range(200)]) - 31.5
    np.testing.assert_allclose(np.hypot(*points.T), np.hypot(20.5, 0.5), atol=0.3)
    angles = np.degrees(np.arctan2(points[:, 1], points[:, 0]))
    assert angles.max() > 80
    assert angles.min() < -80
    assert np.abs(angles).max() < 92


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_random_affine_resizes_about_the_centre_on_black(factor):
    white = Image.new("RGB", (64, 64))
    white.paste((255, 255, 255), (24, 24, 40, 40))
    resized = np.asarray(random_affine(white, np.random.default_rng(0), scale=(factor, factor))).astype(float) / 255
    assert resized[..., 0].sum() == pytest.approx((16 * factor) ** 2, rel=0.02)
    np.testing.assert_allclose(centroid(Image.fromarray((resized * 255).astype(np.uint8))), 31.5, atol=0.01)
    full = random_affine(Image.new("RGB", (64, 64), (255, 255, 255)), np.random.default_rng(0), scale=(0.5, 0.5))
    assert np.asarray(full)[:15].max() == 0


def test_train_transform_without_augmentation_is_the_evaluation_transform():
    config = DataConfig(name="folder", image_size=64)
    pixels = train_transform(photograph(), config, np.random.default_rng(0))
    np.testing.assert_array_equal(pixels, eval_transform(photograph(), config))


@pytest.mark.parametrize(
    "augment",
    [
        AugmentConfig(crop_scale=(0.08, 1.0)),
        AugmentConfig(flip=0.5),
        AugmentConfig(rotate=10.0),
        AugmentConfig(translate=0.1),
        AugmentConfig(scale=(0.8, 1.2)),
    ],
)
def test_every_augmentation_takes_effect_and_follows_the_seed(augment):
    config = DataConfig(name="folder", image_size=32, augment=augment)
    runs = [[train_transform(photograph(), config, np.random.default_rng(s)).tobytes() for s in range(8)] for _ in "ab"]
    assert runs[0] == runs[1]
    assert len(set(runs[0])) == (2 if augment.flip else 8)


AUGMENTATIONS = {
    "rand_augment": {"rand_augment": RandAugmentConfig(num_ops=3, probability=1.0)},
    "three_augment": {"three_augment": True},
    "color_jitter": {"color_jitter": 0.4},
}


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_every_augmentation_of_the_configuration_is_applied_after_the_crop(name):
    image = photograph()
    plain = DataConfig(name="folder", image_size=48, augment=AugmentConfig(crop_scale=(0.2, 0.8), flip=0.5))
    augmented = dataclasses.replace(plain, augment=dataclasses.replace(plain.augment, **AUGMENTATIONS[name]))
    for seed in range(3):
        rng = np.random.default_rng(seed)
        expected = Image.fromarray(train_transform(image, plain, rng))
        match name:
            case "rand_augment":
                fill = (124, 116, 104)  # ImageNet's mean
                expected = rand_augment(expected, rng, augmented.augment.rand_augment, fill)
            case "three_augment":
                expected = three_augment(expected, rng)
            case "color_jitter":
                expected = color_jitter(expected, rng, 0.4)
        ours = train_transform(image, augmented, np.random.default_rng(seed))
        np.testing.assert_array_equal(ours, expected)
        assert (ours != train_transform(image, plain, np.random.default_rng(seed))).any()


def painted_map():
    """Scores and ids that say where they are: the id of a cell is its row, its score its column."""
    rows, columns = np.mgrid[:18, :18]
    return np.tile(columns, (5, 1, 1)).astype(np.float16), np.tile(rows, (5, 1, 1)).astype(np.int16)


def test_the_label_map_follows_the_flip_and_the_box_says_where_the_crop_is():
    # A picture whose red is the column's place and whose green is the row's, so that a crop says where it is from.
    height, width = 270, 360
    ramp = np.zeros((height, width, 3), np.uint8)
    ramp[..., 0] = np.linspace(0, 255, width)[None, :]
    ramp[..., 1] = np.linspace(0, 255, height)[:, None]
    flipped = 0
    for seed in range(20):
        augment = AugmentConfig(crop_scale=(0.2, 0.8), flip=0.5)
        config = DataConfig(name="folder", image_size=64, augment=augment)
        batch = token_label_transform(Image.fromarray(ramp), painted_map(), config, np.random.default_rng(seed))
        assert {key: (value.shape, value.dtype.name) for key, value in batch.items()} == {
            "image": ((64, 64, 3), "uint8"),
            "label_scores": ((5, 18, 18), "float16"),
            "label_ids": ((5, 18, 18), "int16"),
            "crop_box": ((4,), "float32"),
        }
        mirrored = batch["image"][0, 0, 0] > batch["image"][0, -1, 0]
        flipped += mirrored
        scores, ids = painted_map()
        np.testing.assert_array_equal(batch["label_scores"], scores[..., ::-1] if mirrored else scores)
        np.testing.assert_array_equal(batch["label_ids"], ids)
        top, left, crop_height, crop_width = batch["crop_box"]
        red, green = batch["image"][32, 32, :2] / 255
        center_x = left + crop_width / 2
        assert abs(red - (1 - center_x if mirrored else center_x)) < 0.02
        assert abs(green - (top + crop_height / 2)) < 0.02
    assert 4 <= flipped <= 16


def test_the_label_map_follows_rand_augment():
    policy = RandAugmentConfig(num_ops=2, probability=1.0)
    config = DataConfig(name="folder", image_size=32, augment=AugmentConfig(crop_scale=(1.0, 1.0), rand_augment=policy))
    moved = 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        rng.random()  # the flip's
        scores, ids = painted_map()
        for operation in draw_operations(rng, policy, interpolation=None):
            scores, ids = warp_map(scores, ids, operation, aspect=4 / 3)
        batch = token_label_transform(picture(), painted_map(), config, np.random.default_rng(seed))
        np.testing.assert_array_equal(batch["label_scores"], scores)
        np.testing.assert_array_equal(batch["label_ids"], ids)
        moved += (scores != painted_map()[0]).any()
    assert 5 < moved < 30
