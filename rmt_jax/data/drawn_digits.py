"""What the data sets of digits on photographs share: a digit at some size and turn, and where it finds place."""

from collections.abc import Iterator

import numpy as np
from PIL import Image

TURN = 15  # degrees either way
GAP = 2  # pixels between two digits
INK = 0.5  # share of ink, or of paper, from which a pixel belongs to it


def draw_digit(
    digit: np.ndarray, heights: tuple[int, int], random: np.random.RandomState
) -> tuple[np.ndarray, np.ndarray]:
    """A digit enlarged and turned, on a sheet of paper: how much of each pixel is ink, and how much is paper.

    Args:
        digit: [8 8], ink from 0 to 16.
        heights: least height, and where heights end, in pixels; widths are 0.7 to 1.1 times as much.
        random: draws size and turn.

    Returns:
        Two arrays [height width] from 0 to 1.
    """
    height = random.randint(*heights)
    width = round(height * random.uniform(0.7, 1.1))
    angle = random.uniform(-TURN, TURN)
    # A pixel of paper all around: turned digits keep their ends, and the enlarged edge fades to nothing.
    grey = Image.fromarray(np.pad(np.rint(digit * (255 / 16)).astype(np.uint8), 1))
    turned = grey.resize((width, height), Image.Resampling.BICUBIC).rotate(angle, Image.Resampling.BICUBIC)
    sheet = Image.fromarray(np.pad(np.full((height - 2, width - 2), 255, np.uint8), 1))
    paper = np.asarray(sheet.rotate(angle, Image.Resampling.BICUBIC)) / 255
    return np.clip(np.asarray(turned) / 255 * 1.6 - 0.3, 0, 1), paper  # steeper, like ink and not like a blurred scan


def place_digits(
    shape: tuple[int, ...],
    digits: np.ndarray,
    random: np.random.RandomState,
    *,
    count: tuple[int, int],
    heights: tuple[int, int],
) -> Iterator[tuple[int, np.ndarray, np.ndarray, tuple[slice, slice]]]:
    """Some digits and their places on a picture, none over another: (index, ink, paper, place) of each.

    Draws one digit after the other, so that what the caller draws for it comes before the next.

    Args:
        shape: (height, width) of the picture.
        digits: [count 8 8], ink from 0 to 16.
        random: draws everything.
        count: least and most digits; those that find no place are left out.
        heights: see `draw_digit`.
    """
    taken = np.zeros(shape, bool)
    for _ in range(random.randint(count[0], count[1] + 1)):
        index = random.randint(len(digits))
        ink, paper = draw_digit(digits[index], heights, random)
        place = _take_place(taken, ink, random)
        if place is not None:
            yield index, ink, paper, place


def with_noise(picture: np.ndarray, random: np.random.RandomState) -> np.ndarray:
    """A photograph's grain over a picture of 0 .. 255, uint8."""
    return np.clip(np.rint(picture + random.normal(0, 3, picture.shape)), 0, 255).astype(np.uint8)


def _take_place(taken: np.ndarray, like: np.ndarray, random: np.random.RandomState) -> tuple[slice, slice] | None:
    """A random free place of the size of `like`, which is marked as taken, or None where twenty tries found none."""
    height, width = like.shape
    for _ in range(20):
        top, left = random.randint(taken.shape[0] - height + 1), random.randint(taken.shape[1] - width + 1)
        around = slice(max(0, top - GAP), top + height + GAP), slice(max(0, left - GAP), left + width + GAP)
        if not taken[around].any():
            place = slice(top, top + height), slice(left, left + width)
            taken[place] = True
            return place
    return None
