"""Random changes of a picture and its label map, in the arithmetic of mmsegmentation 0.13, which is OpenCV's.

Each change is drawn in one function and applied in another. Pictures are RGB, upstream's are BGR: hue and saturation do
not depend on the order, and the other changes treat all channels alike.
"""

import dataclasses
from collections.abc import Iterator

import cv2
import numpy as np

from rmt_jax.data.config import SegmentationDataConfig
from rmt_jax.data.resize import rescaled_size, resize_image, resize_labels
from rmt_jax.data.segmentation.labels import IGNORE_LABEL

_CROPS_TRIED = 10
_VALUES = np.arange(256, dtype=np.uint8)


def draw_scale(config: SegmentationDataConfig, rng: np.random.Generator) -> tuple[int, int]:
    """`config.scale` times a random factor, rounded down."""
    factor = rng.uniform(*config.ratio_range)
    return int(config.scale[0] * factor), int(config.scale[1] * factor)


def draw_crops(
    size: tuple[int, int], crop_size: tuple[int, int], rng: np.random.Generator
) -> Iterator[tuple[int, int]]:
    """Random corners (top, left) of a crop inside a picture of `size`, the eleven that `choose_crop` may look at."""
    last_top, last_left = max(0, size[0] - crop_size[0]), max(0, size[1] - crop_size[1])
    for _ in range(1 + _CROPS_TRIED):
        yield int(rng.integers(last_top + 1)), int(rng.integers(last_left + 1))


def choose_crop(
    labels: np.ndarray, corners: Iterator[tuple[int, int]], crop_size: tuple[int, int], cat_max_ratio: float
) -> tuple[int, int]:
    """The first of some corners whose crop has two classes or more, none with `cat_max_ratio` of its labelled pixels.

    The last corner, if there is no other. Source: mmsegmentation `RandomCrop`.
    """
    for top, left in corners:
        if cat_max_ratio >= 1:
            break
        counts = np.bincount(crop(labels, (top, left), crop_size).ravel(), minlength=256)[:IGNORE_LABEL]
        if np.count_nonzero(counts) > 1 and counts.max() / counts.sum() < cat_max_ratio:
            break
    return top, left


def crop(array: np.ndarray, corner: tuple[int, int], crop_size: tuple[int, int]) -> np.ndarray:
    """The part of a picture or label map of at most `crop_size` that starts at (top, left)."""
    top, left = corner
    return array[top : top + crop_size[0], left : left + crop_size[1]]


@dataclasses.dataclass(frozen=True)
class Photometric:
    """A change of colours; what is None is left out.

    Attributes:
        brightness: added to every value.
        contrast: factor of every value.
        contrast_first: contrast comes before saturation and hue, not after.
        saturation: factor of the saturation.
        hue: added to the hue, in steps of two degrees.
    """

    brightness: float | None = None
    contrast: float | None = None
    contrast_first: bool = False
    saturation: float | None = None
    hue: int | None = None


def draw_photometric(rng: np.random.Generator) -> Photometric:
    """Each part with probability 1/2, in the ranges of mmsegmentation's `PhotoMetricDistortion`."""
    return Photometric(
        brightness=_sometimes(rng, -32.0, 32.0),
        contrast=_sometimes(rng, 0.5, 1.5),
        contrast_first=bool(rng.random() < 0.5),
        saturation=_sometimes(rng, 0.5, 1.5),
        hue=int(rng.integers(-18, 18)) if rng.random() < 0.5 else None,
    )


def _sometimes(rng: np.random.Generator, low: float, high: float) -> float | None:
    return rng.uniform(low, high) if rng.random() < 0.5 else None


def photometric(image: np.ndarray, change: Photometric) -> np.ndarray:
    """uint8 RGB [height width 3] with changed colours; every part rounds down to uint8, as upstream's does."""
    contrast = None if change.contrast is None else _linear(change.contrast, 0.0)
    if change.brightness is not None:
        image = cv2.LUT(image, _linear(1.0, change.brightness))
    if contrast is not None and change.contrast_first:
        image = cv2.LUT(image, contrast)
    if change.saturation is not None:
        image = _change_hsv(image, saturation=_linear(change.saturation, 0.0))
    if change.hue is not None:
        image = _change_hsv(image, hue=((_VALUES.astype(int) + change.hue) % 180).astype(np.uint8))
    if contrast is not None and not change.contrast_first:
        image = cv2.LUT(image, contrast)
    return image


def _linear(factor: float, offset: float) -> np.ndarray:
    """What becomes of every uint8 value, computed in float32."""
    return np.clip(_VALUES.astype(np.float32) * factor + offset, 0, 255).astype(np.uint8)


def _change_hsv(image: np.ndarray, hue: np.ndarray = _VALUES, saturation: np.ndarray = _VALUES) -> np.ndarray:
    """Hue (0 .. 179) and saturation replaced by tables. A round trip each, because each rounds the picture."""
    tables = np.stack([hue, saturation, _VALUES], axis=-1)[None]
    return cv2.cvtColor(cv2.LUT(cv2.cvtColor(image, cv2.COLOR_RGB2HSV), tables), cv2.COLOR_HSV2RGB)


def pad(image: np.ndarray, labels: np.ndarray, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """Picture and labels in the top left corner of a canvas of `size` (height, width), black and ignored elsewhere.

    Returns:
        {"image": uint8 [height width 3], "label": uint8 [height width], "picture_size": int32 [2], height and width
        without padding}. Upstream's padding is 0 after normalisation: the task, which normalises, can make it so.
    """
    height, width = labels.shape
    canvas, ignored = np.zeros((*size, 3), np.uint8), np.full(size, IGNORE_LABEL, np.uint8)
    canvas[:height, :width], ignored[:height, :width] = image, labels
    return {"image": canvas, "label": ignored, "picture_size": np.array([height, width], np.int32)}


def train_transform(
    image: np.ndarray, labels: np.ndarray, config: SegmentationDataConfig, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """A training example of `config.crop_size`, see `pad`: resized, cropped, flipped, its colours changed.

    Args:
        image: uint8 RGB [height width 3].
        labels: uint8 [height width], classes or `IGNORE_LABEL`.
        config: what to do.
        rng: draws everything.
    """
    height, width = labels.shape
    size = rescaled_size(height, width, draw_scale(config, rng))
    image, labels = resize_image(image, size), resize_labels(labels, size)
    corner = choose_crop(labels, draw_crops(size, config.crop_size, rng), config.crop_size, config.cat_max_ratio)
    image, labels = crop(image, corner, config.crop_size), crop(labels, corner, config.crop_size)
    if rng.random() < config.flip:
        image, labels = image[:, ::-1], labels[:, ::-1]
    if config.photometric:
        image = photometric(np.ascontiguousarray(image), draw_photometric(rng))
    return pad(image, labels, config.crop_size)
