"""Scikit-learn's handwritten digits as a TFDS data set: real pictures that need no download and no TensorFlow."""

import contextlib
import io
import logging
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

_DESCRIPTION = """1,797 handwritten digits of 13 writers, 8x8 grey pictures: the test set of UCI "Optical Recognition
of Handwritten Digits" as it ships with scikit-learn. Its counts 0..16 are stored as grey values 0..255.
The split is this package's own: 36 pictures of every digit are `test` (360), the other 1,437 are `train`."""

_CITATION = """@misc{alpaydin1998optical,
  author = {Alpaydin, Ethem and Kaynak, Cenk},
  title = {Optical Recognition of Handwritten Digits},
  year = {1998},
  publisher = {UCI Machine Learning Repository},
  doi = {10.24432/C50P49},
}"""

TEST_PICTURES_PER_DIGIT = 36


class Digits(tfds.core.GeneratorBasedBuilder):
    """The builder: features `image` (8, 8, 1), `label` 0..9 and `id`, the position in `load_digits()`.

    Source: https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}  # noqa: RUF012 (TFDS declares it without ClassVar)
    # TFDS looks for a table of checksums beside this file, and for that imports a package that it does not install.
    # None is its value for "no source file", and there is nothing to download that would need a checksum.
    code_path = None

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
            "label": tfds.features.ClassLabel(num_classes=10),
            "id": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits",
            citation=_CITATION,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[tuple[int, dict]]]:
        del dl_manager  # nothing to download
        # Imported here: worker processes load this module to read records, and never need scikit-learn.
        from sklearn.datasets import load_digits

        digits = load_digits()
        train, test = split_indices(digits.target)
        return {
            "train": self._generate_examples(digits.images, digits.target, train),
            "test": self._generate_examples(digits.images, digits.target, test),
        }

    def _generate_examples(
        self, images: np.ndarray, labels: np.ndarray, indices: np.ndarray
    ) -> Iterator[tuple[int, dict[str, object]]]:
        for index in indices.tolist():
            grey = np.rint(images[index] * (255 / 16)).astype(np.uint8)
            # Encoded bytes and not the array: to encode an array, TFDS would need TensorFlow.
            png = io.BytesIO()
            Image.fromarray(grey).save(png, format="PNG")
            png.seek(0)
            yield index, {"image": png, "label": int(labels[index]), "id": f"digit_{index:04d}"}


def split_indices(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions in `load_digits()` of the train and of the test pictures, each sorted.

    Every digit gives the same number of test pictures, drawn at random with a fixed seed. The generator is the legacy
    `RandomState` on purpose: NumPy promises never to change its stream (NEP 19), so the split is the same for ever.
    """
    random = np.random.RandomState(0)
    drawn = [random.permutation(np.flatnonzero(labels == digit))[:TEST_PICTURES_PER_DIGIT] for digit in range(10)]
    test = np.sort(np.concatenate(drawn))
    return np.setdiff1d(np.arange(len(labels)), test), test


def prepare_digits(data_dir: str | None = None) -> tfds.core.DatasetBuilder:
    """The builder with its records on disk: see `prepare`; takes well under a second."""
    return prepare(Digits, data_dir)


def prepare(
    builder_class: type[tfds.core.GeneratorBasedBuilder], data_dir: str | None = None
) -> tfds.core.DatasetBuilder:
    """A builder that downloads nothing, with its records on disk: written on the first call and reused afterwards.

    Several processes may call this at once: each writes to a folder of its own and the first to finish renames it
    into place. `data_dir` None is TFDS's default directory.
    """
    builder = builder_class(data_dir=data_dir, file_format="array_record")
    if _is_written(builder):
        return builder
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints two paragraphs for half a second of work
            builder.download_and_prepare(download_config=config)
        logging.getLogger(__name__).info("prepared the %s data set in %s", builder.info.name, builder.data_dir)
    except OSError:
        # Another process renamed its copy into place first: the content is the same, use it.
        if not _is_written(builder):
            raise
    finally:
        tfds.enable_progress_bar()
    return builder_class(data_dir=data_dir, file_format="array_record")


def _is_written(builder: tfds.core.DatasetBuilder) -> bool:
    return (builder.data_path / "dataset_info.json").exists()
