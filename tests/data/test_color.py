import itertools
import math

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter
from PIL.ImageFilter import GaussianBlur  # the class itself, where a test puts a recorder in its place
from sklearn.datasets import load_sample_image

from rmt_jax.data.color import color_jitter, three_augment

CHANGES = ("Brightness", "Contrast", "Color")


@pytest.fixture(scope="module")
def photograph():
    return Image.fromarray(load_sample_image("flower.jpg")).resize((40, 28))


def recorder(base, attribute, calls):
    """The Pillow class, and a note of the argument of each call of the named method."""

    def method(self, value):
        calls.append((base.__name__, value))
        return getattr(base, attribute)(self, value)

    return type(base.__name__, (base,), {attribute: method})


@pytest.fixture
def enhanced(monkeypatch):
    """(class name, factor) of every enhancement that happens, in order."""
    calls = []
    for name in CHANGES:
        monkeypatch.setattr(ImageEnhance, name, recorder(getattr(ImageEnhance, name), "enhance", calls))
    return calls


@pytest.fixture
def blurred(monkeypatch):
    """("GaussianBlur", radius) of every blur that happens."""
    calls = []
    monkeypatch.setattr(ImageFilter, "GaussianBlur", recorder(GaussianBlur, "__init__", calls))
    return calls


def assert_uniform(values, low, high):
    """In the range, filling it to within 1 %, with the mean and the deviation to 4.5 standard errors."""
    values, width = np.array(values), high - low
    assert low <= values.min() < low + 0.01 * width
    assert high - 0.01 * width < values.max() <= high
    assert abs(values.mean() - (low + high) / 2) < 4.5 * width / math.sqrt(12 * len(values))
    assert abs(values.std() - width / math.sqrt(12)) < 4.5 * width * math.sqrt(1 / 60 / len(values))


def assert_share(hits, total, probability):
    """Within 4.5 standard deviations of a binomial count."""
    assert abs(hits - total * probability) < 4.5 * math.sqrt(total * probability * (1 - probability))


def test_three_augment_is_grey_or_solarised_or_blurred(photograph, blurred):
    pixels = np.asarray(photograph)
    grey = np.asarray(photograph.convert("L"))[..., None].repeat(3, axis=2)
    solarised = np.where(pixels < 128, pixels, 255 - pixels)
    counts, rng, before = [0, 0, 0], np.random.default_rng(0), photograph.tobytes()
    for _ in range(6000):
        blurs = len(blurred)
        result = three_augment(photograph, rng)
        assert (result.mode, result.size) == ("RGB", (40, 28))
        if len(blurred) > blurs:
            kind, expected = 2, photograph.filter(GaussianBlur(blurred[-1][1]))
        else:
            kind, expected = (0, grey) if (np.asarray(result) == grey).all() else (1, solarised)
        counts[kind] += 1
        np.testing.assert_array_equal(result, expected)
    assert photograph.tobytes() == before
    for count in counts:
        assert_share(count, 6000, 1 / 3)
    assert_uniform([radius for _, radius in blurred], 0.1, 2.0)


@pytest.mark.parametrize(("strength", "low", "high"), [(0.4, 0.6, 1.4), (0.3, 0.7, 1.3), (1.5, 0.0, 2.5)])
def test_color_jitter_draws_factors_and_order(photograph, enhanced, strength, low, high):
    small, rng = photograph.resize((4, 4)), np.random.default_rng(0)
    for _ in range(6000):
        color_jitter(small, rng, strength)
    calls = [enhanced[start : start + 3] for start in range(0, len(enhanced), 3)]
    assert len(calls) == 6000
    for order in itertools.permutations(CHANGES):
        assert_share(sum(tuple(name for name, _ in call) == order for call in calls), 6000, 1 / 6)
    factors = np.array([[dict(call)[name] for name in CHANGES] for call in calls])
    for column in factors.T:
        assert_uniform(column, low, high)
    correlations = np.corrcoef(factors.T)[np.triu_indices(3, 1)]
    assert abs(correlations).max() < 4.5 / math.sqrt(6000)


def test_color_jitter_is_its_pillow_calls(photograph, enhanced):
    before, rng = photograph.tobytes(), np.random.default_rng(1)
    for _ in range(30):
        enhanced.clear()
        result = color_jitter(photograph, rng, 0.4)
        assert (result.mode, result.size) == ("RGB", (40, 28))
        expected = photograph
        for name, factor in list(enhanced):
            expected = getattr(ImageEnhance, name)(expected).enhance(factor)
        np.testing.assert_array_equal(result, expected)
        assert result.tobytes() != before
    assert photograph.tobytes() == before


def test_color_jitter_of_no_strength_changes_nothing(photograph):
    np.testing.assert_array_equal(color_jitter(photograph, np.random.default_rng(0), 0.0), photograph)


def test_same_seed_same_picture(photograph):
    def results(seed):
        rng = np.random.default_rng(seed)
        pictures = [three_augment(photograph, rng) for _ in range(10)]
        return [picture.tobytes() for picture in [*pictures, *(color_jitter(photograph, rng, 0.4) for _ in range(10))]]

    assert results(0) == results(0)
    assert results(0) != results(1)
