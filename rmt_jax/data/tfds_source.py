"""Data sets prepared with TFDS, by position."""

import contextlib
import difflib
import io
from typing import Any

import tensorflow_datasets as tfds

from rmt_jax.data.config import OWN_NAMES
from rmt_jax.data.imagenet import HOW_TO_DOWNLOAD
from rmt_jax.data.interface import Example, ImageSource

_TFDS_LIST = "https://www.tensorflow.org/datasets/catalog/overview"


class TfdsSource(ImageSource):
    """One split of a prepared TFDS data set with the features `image` and `label`, stored as array_record."""

    def __init__(self, builder: tfds.core.DatasetBuilder, split: str) -> None:
        features = features_of(builder)
        if not (
            isinstance(features.get("image"), tfds.features.Image)
            and isinstance(features.get("label"), tfds.features.ClassLabel)
        ):
            raise ValueError(
                f"TFDS data set {builder.info.full_name} has the features {', '.join(features)}: expected a picture "
                "`image` and a class `label`"
            )
        self._records = TfdsRecords(builder, split, ("image",))
        super().__init__(self._records.name, tuple(features["label"].names))

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        record, record_id = self._records[index]
        label = int(record["label"])
        if label < 0:  # how TFDS stores a hidden label, for example in imagenet2012/test
            raise ValueError(f"record {record_id!r} of {self.name} has no label: train and evaluate on another split")
        return Example(record["image"], label, record_id)


class TfdsRecords:
    """The records of a split, each with an id, by position. Pictures stay encoded: one decoder for all sources.

    Args:
        builder: of a prepared data set.
        split: its name, or a slice.
        pictures: the features that are pictures.

    Raises:
        ValueError: there is no such split, or nothing in it.
    """

    def __init__(self, builder: tfds.core.DatasetBuilder, split: str, pictures: tuple[str, ...]) -> None:
        info = builder.info
        if not info.splits[split].num_examples:  # an unknown split raises here, and lists the known ones
            raise ValueError(f"split {split!r} of TFDS data set {info.full_name} is empty")
        self.name = f"{info.name}/{split}"
        self._records = builder.as_data_source(split, decoders=dict.fromkeys(pictures, tfds.decode.SkipDecoding()))
        self._id_feature = next((key for key in ("file_name", "id", "image/filename") if key in info.features), None)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> tuple[dict[str, Any], str]:
        record = self._records[index]
        record_id = record[self._id_feature] if self._id_feature else f"{self.name}/{index}"
        return record, record_id.decode(errors="replace") if isinstance(record_id, bytes) else str(record_id)


def features_of(builder: tfds.core.DatasetBuilder) -> dict[str, Any]:
    """The features of a prepared data set by name.

    Raises:
        FileNotFoundError, ValueError: it is not prepared, or in a format without random access.
    """
    _check_prepared(builder)
    features = builder.info.features
    return dict(features.items()) if isinstance(features, tfds.features.FeaturesDict) else {}


def find_builder(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
    """TFDS's builder of a data set, prepared or not.

    Raises:
        ValueError: TFDS knows no such data set, and there is none of this name in the directory.
        FileNotFoundError: it is not prepared, and TFDS's own code of it needs TensorFlow, which is not installed.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints how to install TensorFlow
            return tfds.builder(name, data_dir=data_dir)
    except ImportError as error:
        return _builder_from_files(name, data_dir, error)
    except tfds.core.DatasetNotFoundError as error:
        # Community data sets are left out: to list them, TFDS would need TensorFlow and the network.
        known = {*OWN_NAMES, *tfds.list_builders(with_community_datasets=False)}
        near = difflib.get_close_matches(name, sorted(known), n=3)
        hint = (
            f"did you mean {' or '.join(near)}?"
            if near
            else f"expected one of {', '.join(OWN_NAMES)}, or of {_TFDS_LIST}"
        )
        raise ValueError(f"unknown data set data.name={name!r}: {hint}") from error


def _builder_from_files(name: str, data_dir: str | None, problem: ImportError) -> tfds.core.DatasetBuilder:
    """The builder of a prepared data set, without TFDS's code, which is needed to prepare it and not to read it."""
    try:
        return tfds.core.read_only_builder.builder_from_files(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
        where = data_dir or tfds.core.constants.DATA_DIR
        raise FileNotFoundError(
            f"TFDS data set {name} is not prepared in {where}: set data.dir to the directory that holds it, or prepare "
            f"it once, with TensorFlow: tfds build {name} --file_format=array_record --data_dir={where} ({problem})"
        ) from problem


def _check_prepared(builder: tfds.core.DatasetBuilder) -> None:
    """Raise unless the data set is on disk in a format with random access."""
    name, where = builder.info.full_name, builder.data_path
    if not (where / "dataset_info.json").exists():
        raise FileNotFoundError(
            f"TFDS data set {name} is not prepared: no {where}/dataset_info.json{_found_beside(builder)}. Set data.dir "
            f"to the directory that holds {name}, or prepare it once: {_how_to_prepare(builder)}"
        )
    formats = {file_format.value for file_format in builder.info.available_file_formats()}
    if "array_record" not in formats:
        raise ValueError(
            f"TFDS data set {name} in {where} is stored as {', '.join(sorted(formats))}, which has no random access. "
            f"Convert it once: tfds convert_format --dataset_version_dir={where} --out_file_format=array_record"
        )


def _found_beside(builder: tfds.core.DatasetBuilder) -> str:
    """Other versions, and a preparation that was interrupted."""
    folder = builder.data_path.parent
    names = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    versions = [name for name in names if tfds.core.Version.is_valid(name)]
    found = f" (found there: {', '.join(versions)}, read with data.name=NAME:VERSION)" if versions else ""
    return found + (
        " (its preparation was interrupted)" if any(name.startswith("incomplete.") for name in names) else ""
    )


def _how_to_prepare(builder: tfds.core.DatasetBuilder) -> str:
    if builder.info.name == "imagenet2012":
        return (
            f"rmt data imagenet --tars=TARS --data-dir={builder.data_dir_root}, with the folder TARS that holds what "
            f"you download: {HOW_TO_DOWNLOAD}. Or read them in place, with data.name=tar and data.dir=TARS, or "
            "unpacked, with data.name=folder"
        )
    return (
        f"tfds build {builder.info.full_name.rpartition('/')[0]} --file_format=array_record "
        f"--data_dir={builder.data_dir_root} (TFDS needs TensorFlow for this)"
    )
