"""Handwritten digits on photographs, with a label for every pixel: a TFDS data set made of what scikit-learn ships."""

import io
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from rmt_jax.data.digits import split_indices
from rmt_jax.data.drawn_digits import INK, place_digits, with_noise

CLASS_NAMES = ("background", *"0123456789")
SIZE = 96  # pixels of either side
PICTURES = {"train": 3000, "test": 200}

_DESCRIPTION = f"""Pictures of {SIZE} x {SIZE} pixels with notes on a photograph, two to four where they find place. On
each note is one of scikit-learn's handwritten digits. A pixel's label is 1 + the digit on whose note it lies, or 0. The
photographs are scikit-learn's china.jpg and flower.jpg: `train` is cut from their left three quarters and `test` from
the rest, and the digits of the two are those of the two splits of this package's `digits`."""

# Parts of a photograph's width, and the sides in pixels of what is cut out of it.
_COLUMNS = {"train": (0.0, 0.75), "test": (0.75, 1.0)}
_CUTS = (96, 150)

_NOTES = (2, 4)  # on a picture
_HEIGHTS = (36, 54)  # of a note, in pixels


class DigitsSegmentation(tfds.core.GeneratorBasedBuilder):
    """The builder: features `image` (96, 96, 3), `label_map` (96, 96, 1), `id`."""

    VERSION = tfds.core.Version("2.0.0")
    RELEASE_NOTES = {"1.0.0": "Labels on the ink.", "2.0.0": "Labels on notes, larger pictures."}  # noqa: RUF012 (TFDS declares it without ClassVar)
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
    """Dark notes with a digit in bright ink on a background, none over another.

    Args:
        background: [height width 3], 0 .. 255.
        digits: [count 8 8], ink from 0 to 16.
        labels: [count], the digits' classes 0 .. 9.
        random: draws everything.

    Returns:
        The picture, uint8 [height width 3], and its label map, uint8 [height width].
    """
    picture = background.copy()
    label_map = np.zeros(background.shape[:2], np.uint8)
    placed = place_digits(label_map.shape, digits, random, count=_NOTES, heights=_HEIGHTS)
    for drawn, ink, paper, place in placed:
        opaque = random.uniform(0.9, 1) * paper[..., None]
        picture[place] = picture[place] * (1 - opaque) + random.uniform(0, 80, 3) * opaque
        color = random.uniform(170, 255, 3)
        picture[place] += (color - picture[place]) * (ink * random.uniform(0.8, 1))[..., None]
        label_map[place][paper > INK] = 1 + labels[drawn]
    return with_noise(picture, random), label_map
