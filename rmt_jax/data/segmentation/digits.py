"""Handwritten digits on photographs, with a label for every pixel: a TFDS data set made of what scikit-learn ships."""

import io
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from rmt_jax.data.digits import split_indices

CLASS_NAMES = ("background", *"0123456789")
SIZE = 96  # pixels of either side
PICTURES = {"train": 1500, "test": 200}

_DESCRIPTION = f"""Pictures of {SIZE} x {SIZE} pixels with two to five of scikit-learn's handwritten digits, in ink on a
photograph or on a note that lies on it. A pixel's label is 1 + the digit whose ink it is, or 0. The photographs are
scikit-learn's china.jpg and flower.jpg: `train` is cut from their left three quarters and `test` from the rest, and the
digits of the two are those of the two splits of this package's `digits`."""

# Parts of a photograph's width, and the sides in pixels of what is cut out of it.
_COLUMNS = {"train": (0.0, 0.75), "test": (0.75, 1.0)}
_CUTS = (72, 150)

_DIGITS = (2, 5)  # in a picture
_HEIGHTS = (28, 60)  # of a digit, in pixels
_GAP = 2
_TURN = 15  # degrees either way
_INK = 0.5  # share of ink from which a pixel belongs to its digit


class DigitsSegmentation(tfds.core.GeneratorBasedBuilder):
    """The builder: features `image` (96, 96, 3), `label_map` (96, 96, 1), `id`."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}  # noqa: RUF012 (TFDS declares it without ClassVar)
    code_path = None  # as in `Digits`

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(SIZE, SIZE, 3), encoding_format="jpeg"),
            "label_map": tfds.features.LabeledImage(
                labels=list(CLASS_NAMES), shape=(SIZE, SIZE, 1), encoding_format="png"
            ),
            "id": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label_map"),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[tuple[int, dict]]]:
        del dl_manager  # nothing to download
        # Imported here: worker processes load this module to read records, and never need scikit-learn.
        from sklearn.datasets import load_digits, load_sample_images

        digits, photographs = load_digits(), load_sample_images().images
        return {
            split: self._generate_examples(split, photographs, digits.images[taken], digits.target[taken])
            for split, taken in zip(PICTURES, split_indices(digits.target), strict=True)
        }

    def _generate_examples(
        self, split: str, photographs: list[np.ndarray], digits: np.ndarray, labels: np.ndarray
    ) -> Iterator[tuple[int, dict[str, object]]]:
        for index in range(PICTURES[split]):
            # NumPy promises never to change this stream (NEP 19).
            random = np.random.RandomState([len(split), index])
            photograph = Image.fromarray(photographs[index % len(photographs)])
            image, label_map = draw_picture(_cut(photograph, _COLUMNS[split], random), digits, labels, random)
            yield (
                index,
                {
                    "image": _encode(image, "JPEG", quality=95),
                    "label_map": _encode(label_map, "PNG"),
                    "id": f"{split}_{index:04d}",
                },
            )


def _encode(array: np.ndarray, image_format: str, **options: int) -> io.BytesIO:
    """A file in memory: to encode an array, TFDS would need TensorFlow."""
    data = io.BytesIO()
    Image.fromarray(array).save(data, image_format, **options)
    data.seek(0)
    return data


def _cut(photograph: Image.Image, columns: tuple[float, float], random: np.random.RandomState) -> np.ndarray:
    """A random square of some columns, float64 [SIZE SIZE 3]."""
    first, last = (round(share * photograph.width) for share in columns)
    side = random.randint(*_CUTS)
    left, top = random.randint(first, last - side + 1), random.randint(photograph.height - side + 1)
    box = (left, top, left + side, top + side)
    return np.asarray(photograph.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box), np.float64)


def draw_picture(
    background: np.ndarray, digits: np.ndarray, labels: np.ndarray, random: np.random.RandomState
) -> tuple[np.ndarray, np.ndarray]:
    """Some digits drawn on a background, none over another: see `draw_instances`.

    Returns:
        The picture, uint8 [height width 3], and its label map, uint8 [height width].
    """
    picture, instances, classes = draw_instances(background, digits, labels, random, count=_DIGITS, heights=_HEIGHTS)
    return picture, np.array([0, *(1 + classes)], np.uint8)[instances]


def draw_instances(
    background: np.ndarray,
    digits: np.ndarray,
    labels: np.ndarray,
    random: np.random.RandomState,
    *,
    count: tuple[int, int],
    heights: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Some digits drawn on a background, none over another.

    Args:
        background: [height width 3], 0 .. 255.
        digits: [count 8 8], ink from 0 to 16.
        labels: [count], the digits' classes 0 .. 9.
        random: draws everything.
        count: least and most digits to draw; those that find no place are left out.
        heights: least height of a digit, and where heights end, in pixels.

    Returns:
        The picture, uint8 [height width 3], the number of the digit whose ink each pixel is, counted from 1, or 0,
        uint8 [height width], and the class of each drawn digit, int [drawn].
    """
    picture = background.copy()
    instances = np.zeros(background.shape[:2], np.uint8)
    classes: list[int] = []
    taken = np.zeros(background.shape[:2], bool)
    for _ in range(random.randint(count[0], count[1] + 1)):
        drawn = random.randint(len(digits))
        ink = _ink(digits[drawn], heights, random)
        height, width = ink.shape
        place = _place(taken, height, width, random)
        if place is None:
            continue
        taken[place] = True
        on_note = random.rand() < 0.35
        if on_note:
            opaque = random.uniform(0.6, 0.9)
            picture[place] = picture[place] * (1 - opaque) + random.uniform(190, 255, 3) * opaque
        bright = not on_note and picture[place].mean() < random.uniform(100, 150)
        color = random.uniform(0, 80, 3)
        color = 255 - color if bright else color
        picture[place] += (color - picture[place]) * (ink * random.uniform(0.8, 1))[..., None]
        classes.append(labels[drawn])
        instances[place][ink > _INK] = len(classes)
    noisy = picture + random.normal(0, 3, picture.shape)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8), instances, np.array(classes, np.int64)


def _ink(digit: np.ndarray, heights: tuple[int, int], random: np.random.RandomState) -> np.ndarray:
    """A digit enlarged and turned: how much ink is on each pixel, 0 .. 1, [height width]."""
    height = random.randint(*heights)
    width = round(height * random.uniform(0.7, 1.1))
    # A pixel of paper all around: turned digits keep their ends, and the enlarged edge fades to nothing.
    grey = Image.fromarray(np.pad(np.rint(digit * (255 / 16)).astype(np.uint8), 1))
    grey = grey.resize((width, height), Image.Resampling.BICUBIC)
    turned = grey.rotate(random.uniform(-_TURN, _TURN), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(turned) / 255 * 1.6 - 0.3, 0, 1)  # steeper, like ink and not like a blurred scan


def _place(taken: np.ndarray, height: int, width: int, random: np.random.RandomState) -> tuple[slice, slice] | None:
    """A random free place of a size, or None where twenty tries found none."""
    for _ in range(20):
        top, left = random.randint(taken.shape[0] - height + 1), random.randint(taken.shape[1] - width + 1)
        around = slice(max(0, top - _GAP), top + height + _GAP), slice(max(0, left - _GAP), left + width + _GAP)
        if not taken[around].any():
            return slice(top, top + height), slice(left, left + width)
    return None
