"""Data sets prepared with TFDS, by position."""

import difflib

import tensorflow_datasets as tfds

from rmt_jax.data.imagenet import HOW_TO_DOWNLOAD
from rmt_jax.data.interface import Example, ImageSource

_TFDS_LIST = "https://www.tensorflow.org/datasets/catalog/overview"


class TfdsSource(ImageSource):
    """One split of a prepared TFDS data set with the features `image` and `label`, stored as array_record."""

    def __init__(self, builder: tfds.core.DatasetBuilder, split: str) -> None:
        _check_prepared(builder)
        info = builder.info
        features = dict(info.features.items()) if isinstance(info.features, tfds.features.FeaturesDict) else {}
        if not (
            isinstance(features.get("image"), tfds.features.Image)
            and isinstance(features.get("label"), tfds.features.ClassLabel)
        ):
            raise ValueError(
                f"TFDS data set {info.full_name} has the features {', '.join(features) or info.features}: "
                "expected a picture `image` and a class `label`"
            )
        if not info.splits[split].num_examples:  # an unknown split raises here, and lists the known ones
            raise ValueError(f"split {split!r} of TFDS data set {info.full_name} is empty")
        super().__init__(f"{info.name}/{split}", tuple(features["label"].names))
        # The pictures stay encoded, so that there is one decoder for every kind of source.
        self._records = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
        self._id_feature = next((key for key in ("file_name", "id", "image/filename") if key in features), None)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        record = self._records[index]
        record_id = record[self._id_feature] if self._id_feature else f"{self.name}/{index}"
        if isinstance(record_id, bytes):
            record_id = record_id.decode(errors="replace")
        label = int(record["label"])
        if label < 0:  # how TFDS stores a hidden label, for example in imagenet2012/test
            raise ValueError(f"record {record_id!r} of {self.name} has no label: train and evaluate on another split")
        return Example(record["image"], label, str(record_id))


def find_builder(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
    """TFDS's builder of a data set, prepared or not.

    Raises:
        ValueError: TFDS knows no such data set, and there is none of this name in the directory.
    """
    try:
        return tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        # Community data sets are left out: to list them, TFDS would need TensorFlow and the network.
        known = {"digits", "folder", "tar", *tfds.list_builders(with_community_datasets=False)}
        near = difflib.get_close_matches(name, sorted(known), n=3)
        hint = (
            f"did you mean {' or '.join(near)}?"
            if near
            else f'expected "digits", "folder", "tar" or one of {_TFDS_LIST}'
        )
        raise ValueError(f"unknown data set data.name={name!r}: {hint}") from error


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
