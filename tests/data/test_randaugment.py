import functools
import itertools
import math

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from sklearn.datasets import load_sample_image

from rmt_jax.data.config import RandAugmentConfig
from rmt_jax.data.randaugment import (
    GEOMETRIC,
    OPERATIONS,
    Operation,
    apply_operation,
    draw_operations,
    mean_color,
    rand_augment,
)

FILL = (10, 200, 90)
PICTURES = 20_000  # drawn for each statistic

# timm's levels at magnitudes 0, 3, 6, 9 and 10, for positive signs.
MAGNITUDES = (0, 3, 6, 9, 10)
ENHANCED = (1, 1.27, 1.54, 1.81, 1.9)
LEVELS = {
    "AutoContrast": (0, 0, 0, 0, 0),
    "Equalize": (0, 0, 0, 0, 0),
    "Invert": (0, 0, 0, 0, 0),
    "Rotate": (0, 9, 18, 27, 30),
    "Posterize": (4, 3, 2, 1, 0),
    "Solarize": (256, 180, 103, 26, 0),
    "SolarizeAdd": (0, 33, 66, 99, 110),
    "Color": ENHANCED,
    "Contrast": ENHANCED,
    "Brightness": ENHANCED,
    "Sharpness": ENHANCED,
    "ShearX": (0, 0.09, 0.18, 0.27, 0.3),
    "ShearY": (0, 0.09, 0.18, 0.27, 0.3),
    "TranslateX": (0, 0.135, 0.27, 0.405, 0.45),
    "TranslateY": (0, 0.135, 0.27, 0.405, 0.45),
}
MOVED = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")
FACTORS = ("Color", "Contrast", "Brightness", "Sharpness")


def both_signs(name, level):
    if name in MOVED:
        return [-level, level]
    if name in FACTORS:
        return [2 - level, level]
    return [level]


def affine(image, matrix, resample):
    return image.transform((60, 44), Image.AFFINE, matrix, resample=resample, fillcolor=FILL)


def solarize_add(image, add):
    pixels = np.asarray(image).astype(int)
    return Image.fromarray(np.where(pixels < 128, np.minimum(255, pixels + add), pixels).astype(np.uint8))


CALLS = {
    "AutoContrast": lambda image, level, resample: ImageOps.autocontrast(image),
    "Equalize": lambda image, level, resample: ImageOps.equalize(image),
    "Invert": lambda image, level, resample: ImageOps.invert(image),
    "Rotate": lambda image, level, resample: image.rotate(level, resample=resample, fillcolor=FILL),
    "Posterize": lambda image, level, resample: ImageOps.posterize(image, level),
    "Solarize": lambda image, level, resample: ImageOps.solarize(image, level),
    "SolarizeAdd": lambda image, level, resample: solarize_add(image, level),
    "Color": lambda image, level, resample: ImageEnhance.Color(image).enhance(level),
    "Contrast": lambda image, level, resample: ImageEnhance.Contrast(image).enhance(level),
    "Brightness": lambda image, level, resample: ImageEnhance.Brightness(image).enhance(level),
    "Sharpness": lambda image, level, resample: ImageEnhance.Sharpness(image).enhance(level),
    "ShearX": lambda image, level, resample: affine(image, (1, level, 0, 0, 1, 0), resample),
    "ShearY": lambda image, level, resample: affine(image, (1, 0, 0, level, 1, 0), resample),
    "TranslateX": lambda image, level, resample: affine(image, (1, 0, level * 60, 0, 1, 0), resample),
    "TranslateY": lambda image, level, resample: affine(image, (1, 0, 0, 0, 1, level * 44), resample),
}


@pytest.fixture(scope="module")
def photograph():
    """60 x 44 pixels, of low contrast, so that AutoContrast has something to do."""
    image = Image.fromarray(load_sample_image("china.jpg")).resize((60, 44))
    return image.point([20 + value * 3 // 4 for value in range(256)] * 3)


@functools.cache
def draw(seed=0, pictures=PICTURES, interpolation="bicubic", **config):
    rng, config = np.random.default_rng(seed), RandAugmentConfig(**{"num_ops": 2, **config})
    return [draw_operations(rng, config, interpolation) for _ in range(pictures)]


def flatten(drawn):
    return list(itertools.chain.from_iterable(drawn))


def assert_share(hits, total, probability, name=""):
    """Within 4.5 standard deviations of a binomial count."""
    deviation = math.sqrt(total * probability * (1 - probability))
    assert abs(hits - total * probability) <= 4.5 * deviation, f"{name}: {hits} of {total}, expected {probability:.4f}"


def strength(operation):
    """The magnitude behind the level of a signed operation."""
    if operation.name in MOVED:
        return abs(operation.level) / LEVELS[operation.name][-1] * 10
    return abs(operation.level - 1) / 0.9 * 10


def sign(operation):
    return 1 if operation.level > (0 if operation.name in MOVED else 1) else -1


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("column", [1, 2, 3], ids=lambda column: f"magnitude{MAGNITUDES[column]}")
@pytest.mark.parametrize("name", LEVELS)
def test_operation_is_its_pillow_call(photograph, name, column, interpolation):
    resample = {"bilinear": Image.BILINEAR, "bicubic": Image.BICUBIC}[interpolation]
    before, results = photograph.tobytes(), set()
    for level in both_signs(name, LEVELS[name][column]):
        result = apply_operation(photograph, Operation(name, float(level), interpolation), FILL)
        assert result.mode == "RGB"
        assert result.size == (60, 44)
        np.testing.assert_array_equal(result, CALLS[name](photograph, level, resample))
        results.add(result.tobytes())
    assert photograph.tobytes() == before
    assert len(results | {before}) == 1 + len(both_signs(name, 1))  # every level changes the picture, and differently


def test_border_has_the_fill_colour(photograph):
    moved = {
        ("TranslateX", 0.25): (45, 0, 60, 44),
        ("TranslateX", -0.25): (0, 0, 15, 44),
        ("TranslateY", 0.25): (0, 33, 60, 44),
        ("TranslateY", -0.25): (0, 0, 60, 11),
    }
    for (name, level), box in moved.items():
        border = apply_operation(photograph, Operation(name, level, "bicubic"), FILL).crop(box)
        assert [color for _, color in border.getcolors()] == [FILL], (name, level)
    for name, level in (("Rotate", 20.0), ("ShearX", 0.3), ("ShearY", 0.3)):
        assert apply_operation(photograph, Operation(name, level, "bicubic"), FILL).getpixel((59, 43)) == FILL, name


def test_posterize_to_no_bits_is_black(photograph):
    result = apply_operation(photograph, Operation("Posterize", 0.0, "bicubic"), FILL)
    assert result.mode == "RGB"
    assert result.getcolors() == [(60 * 44, (0, 0, 0))]


def test_unknown_operation_is_refused(photograph):
    with pytest.raises(ValueError, match=r"'PosterizeIncreasing': expected one of AutoContrast.*TranslateY"):
        apply_operation(photograph, Operation("PosterizeIncreasing", 1.0, "bicubic"), FILL)


@pytest.mark.parametrize(
    ("mean", "color"),
    [
        ((0.485, 0.456, 0.406), (124, 116, 104)),
        ((0.5, 0.5, 0.5), (128, 128, 128)),
        ((0.0, 1.0, 1.01), (0, 255, 255)),
    ],
)
def test_mean_color(mean, color):
    assert mean_color(mean) == color


@pytest.mark.parametrize("column", range(len(MAGNITUDES)), ids=lambda column: f"magnitude{MAGNITUDES[column]}")
def test_levels_are_timms(column):
    drawn = flatten(draw(pictures=1000, magnitude=float(MAGNITUDES[column]), magnitude_std=0.0, probability=1.0))
    assert set(OPERATIONS) == {operation.name for operation in drawn} == set(LEVELS)
    for name in LEVELS:
        levels = sorted({operation.level + 0.0 for operation in drawn if operation.name == name})
        assert levels == pytest.approx(sorted(set(both_signs(name, LEVELS[name][column]))), abs=1e-12), name


def test_whole_numbers_are_cut_and_factors_stay_at_least_a_tenth():
    drawn = flatten(draw(pictures=500, magnitude=7.33, magnitude_std=0.0, probability=1.0))
    levels = {operation.name: operation.level for operation in drawn}
    # of 2.932 bits, 187.648 and 80.63; to the nearest would be one more of each
    assert (levels["Posterize"], levels["Solarize"], levels["SolarizeAdd"]) == (2, 69, 80)
    strongest = flatten(draw(pictures=500, magnitude=10.0, magnitude_std=0.0, probability=1.0))
    assert min(operation.level for operation in strongest if operation.name in FACTORS) == 0.1


def test_geometric_operations():
    assert set(GEOMETRIC) == set(MOVED)


def test_operations_are_uniform_with_replacement():
    drawn = draw(probability=1.0)
    for position in range(2):
        names = [operations[position].name for operations in drawn]
        for name in LEVELS:
            assert_share(names.count(name), PICTURES, 1 / 15, name)
    assert_share(sum(first.name == second.name for first, second in drawn), PICTURES, 1 / 15, "the same twice")
    assert [len(operations) for operations in draw(pictures=3, num_ops=20, probability=1.0)] == [20, 20, 20]


@pytest.mark.parametrize("probability", [0.2, 0.5])
def test_each_operation_has_its_own_chance_to_be_applied(probability):
    drawn = draw(probability=probability)
    for applied, share in enumerate([(1 - probability) ** 2, 2 * probability * (1 - probability), probability**2]):
        assert_share(sum(len(operations) == applied for operations in drawn), PICTURES, share, f"{applied} applied")
    names = [operation.name for operation in flatten(drawn)]
    for name in LEVELS:
        assert_share(names.count(name), 2 * PICTURES, probability / 15, name)


def test_extreme_probabilities_and_no_operations():
    assert {len(operations) for operations in draw(pictures=1000, probability=1.0)} == {2}
    assert {len(operations) for operations in draw(pictures=1000, probability=0.0)} == {0}
    assert {len(operations) for operations in draw(pictures=10, num_ops=0)} == {0}


def test_magnitude_is_normal():
    drawn = flatten(draw(magnitude=5.0, magnitude_std=1.0, probability=1.0))
    for group in (*((name,) for name in MOVED), FACTORS):
        magnitudes = np.array([strength(operation) for operation in drawn if operation.name in group])
        assert abs(magnitudes.mean() - 5) < 4.5 / math.sqrt(len(magnitudes)), group
        assert abs(magnitudes.std() - 1) < 4.5 / math.sqrt(2 * len(magnitudes)), group
        for bound, share in ((0.5, 0.38292), (1, 0.68269), (2, 0.95450)):
            assert_share((abs(magnitudes - 5) < bound).sum(), len(magnitudes), share, f"{group} within {bound}")


@pytest.mark.parametrize(
    ("magnitude", "std", "at_0", "at_10"), [(9.0, 0.5, 0, 0.02275), (10.0, 2.0, 0, 0.5), (0.0, 2.0, 0.5, 0)]
)
def test_magnitude_is_clamped(magnitude, std, at_0, at_10):
    drawn = flatten(draw(magnitude=magnitude, magnitude_std=std, probability=1.0))
    levels = np.array([abs(operation.level) for operation in drawn if operation.name == "Rotate"])
    assert levels.max() <= 30
    assert_share((levels == 0).sum(), len(levels), at_0, "at 0")
    assert_share((levels == 30).sum(), len(levels), at_10, "at 10")
    bits = [operation.level for operation in drawn if operation.name == "Posterize"]
    assert set(bits) <= {0, 1, 2, 3, 4}


def test_magnitudes_and_signs_of_a_picture_are_independent():
    signed = [pair for pair in draw(probability=1.0) if all(o.name in MOVED + FACTORS for o in pair)]
    magnitudes = np.array([[strength(operation) for operation in pair] for pair in signed])
    assert abs(np.corrcoef(magnitudes.T)[0, 1]) < 4.5 / math.sqrt(len(signed))
    assert_share(sum(sign(first) == sign(second) for first, second in signed), len(signed), 0.5, "equal signs")


def test_signs_are_balanced():
    drawn = flatten(draw(probability=1.0))
    for name in MOVED + FACTORS:
        signs = [sign(operation) for operation in drawn if operation.name == name]
        assert_share(signs.count(-1), len(signs), 0.5, name)


def test_interpolation_is_fixed_or_drawn():
    for interpolation in ("bilinear", "bicubic"):
        drawn = flatten(draw(pictures=500, interpolation=interpolation))
        assert {operation.interpolation for operation in drawn} == {interpolation}
    drawn = draw(interpolation=None, probability=1.0)
    for position in range(2):
        bicubic = [operations[position].interpolation == "bicubic" for operations in drawn]
        assert_share(sum(bicubic), PICTURES, 0.5, "bicubic")
    assert {operation.interpolation for operation in flatten(drawn)} == {"bilinear", "bicubic"}
    same = sum(first.interpolation == second.interpolation for first, second in drawn)
    assert_share(same, PICTURES, 0.5, "the same for both operations")


def test_same_seed_same_operations():
    config = RandAugmentConfig(num_ops=20)
    one, two, other = (draw_operations(np.random.default_rng(seed), config, None) for seed in (3, 3, 4))
    assert one == two != other


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", None])
def test_rand_augment_applies_what_is_drawn_in_order(photograph, interpolation):
    config = RandAugmentConfig(num_ops=3, probability=0.8)
    changed = 0
    for seed in range(60):
        result = rand_augment(photograph, np.random.default_rng(seed), config, FILL, interpolation)
        expected = photograph
        for operation in draw_operations(np.random.default_rng(seed), config, interpolation):
            expected = apply_operation(expected, operation, FILL)
        np.testing.assert_array_equal(result, expected)
        assert (result.mode, result.size) == ("RGB", (60, 44))
        changed += result.tobytes() != photograph.tobytes()
    assert changed > 50
