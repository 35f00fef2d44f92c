"""Where pictures come from: one random-access interface over folders and TFDS data sets. Nothing is decoded here."""

import abc
import dataclasses
import difflib
import logging
import os

import numpy as np
import tensorflow_datasets as tfds

from rmt_jax.data.config import DataConfig
from rmt_jax.data.digits import prepare_digits

PICTURE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
_TFDS_LIST = "https://www.tensorflow.org/datasets/catalog/overview"


@dataclasses.dataclass(frozen=True)
class Example:
    """One record: the encoded picture, its class, and an id that finds the record again (a file name where known)."""

    image: bytes
    label: int
    id: str


class ImageSource(abc.ABC):
    """Labelled pictures by position; can be pickled, worker processes read from a copy.

    Attributes:
        name: for messages and summaries, for example "imagenet2012/train".
        class_names: the name of every class, by label.
    """

    def __init__(self, name: str, class_names: tuple[str, ...]) -> None:
        self.name = name
        self.class_names = class_names

    @property
    def num_classes(self) -> int:
        """Labels are 0 .. num_classes - 1."""
        return len(self.class_names)

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def __getitem__(self, index: int) -> Example: ...


def open_source(config: DataConfig, split: str) -> ImageSource:
    """One split of the data set that `config` names.

    Raises:
        ValueError: an unknown data set or split, a data set without pictures and labels, a folder not laid out as
            `DIR/SPLIT/CLASS/picture.jpg`.
        FileNotFoundError: the folder, or the prepared TFDS data set, is not there.
    """
    if config.name == "folder":
        return FolderSource(config, split)
    data_dir = None if config.dir is None else os.path.expanduser(config.dir)
    if config.name == "digits":
        return TfdsSource(prepare_digits(data_dir), split)
    return TfdsSource(_find_builder(config.name, data_dir), split)


class FolderSource(ImageSource):
    """Pictures as ImageNet lays them out: `DIR/SPLIT/CLASS/picture.jpg`, classes numbered in the order of their names.

    The other split of the configuration, where it is there, must have the same classes: labels are numbered by name, so
    one class more or less would shift the others silently.
    """

    def __init__(self, config: DataConfig, split: str) -> None:
        if config.dir is None:
            raise ValueError('data.name="folder" needs data.dir, the folder that holds DIR/SPLIT/CLASS/picture.jpg')
        root = os.path.expanduser(config.dir)
        self._folder = os.path.join(root, split)
        class_names = _class_folders(self._folder, root)
        for other in {config.train_split, config.eval_split} - {split}:
            if os.path.isdir(os.path.join(root, other)):
                _check_same_classes(self._folder, class_names, os.path.join(root, other), root)
        super().__init__(f"{os.path.basename(os.path.normpath(root))}/{split}", class_names)
        files, labels, ignored = [], [], []
        for label, name in enumerate(class_names):
            pictures, others = _list_pictures(os.path.join(self._folder, name))
            if not pictures:
                raise ValueError(
                    f"class folder {os.path.join(self._folder, name)} holds no pictures "
                    f"({', '.join(PICTURE_ENDINGS)}): remove it, in every split, or fill it"
                )
            files += [f"{name}/{picture}" for picture in pictures]
            labels += [label] * len(pictures)
            ignored += [f"{name}/{other}" for other in others]
        if ignored:
            logging.getLogger(__name__).warning(
                "%s: %d entries are not pictures and are not read, the first is %s", self.name, len(ignored), ignored[0]
            )
        # Arrays and not lists: a million paths are copied to every worker process.
        self._files = np.array([os.fsencode(file) for file in files])
        self._labels = np.array(labels, np.int32)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Example:
        name = os.fsdecode(self._files[index])
        with open(os.path.join(self._folder, name), "rb") as file:
            return Example(file.read(), int(self._labels[index]), name)


def _class_folders(folder: str, root: str) -> tuple[str, ...]:
    if not os.path.isdir(folder):
        found = sorted(os.listdir(root)) if os.path.isdir(root) else None
        there = "which does not exist itself" if found is None else f"which holds {', '.join(found[:10]) or 'nothing'}"
        raise FileNotFoundError(
            f"no folder {folder} in {root}, {there}: expected DIR/SPLIT/CLASS/picture.jpg with data.dir=DIR and "
            "data.train_split, data.eval_split naming the SPLIT folders"
        )
    # Hidden folders (.ipynb_checkpoints and the like) are not classes.
    names = tuple(sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != "."))
    if not names:
        raise ValueError(f"{folder} holds no class folders: expected one folder a class, {folder}/CLASS/picture.jpg")
    return names


def _check_same_classes(folder: str, names: tuple[str, ...], other_folder: str, root: str) -> None:
    differing = sorted(set(names) ^ set(_class_folders(other_folder, root)))
    if differing:
        raise ValueError(
            f"{folder} and {other_folder} must have the same class folders, but {len(differing)} are in one of them "
            f"only: {', '.join(differing[:5])}{', ...' if len(differing) > 5 else ''}"
        )


def _list_pictures(folder: str) -> tuple[list[str], list[str]]:
    """Names in a class folder, sorted: pictures, and everything else that is not hidden."""
    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    pictures = [name for name in names if name.lower().endswith(PICTURE_ENDINGS)]
    return pictures, [name for name in names if not name.lower().endswith(PICTURE_ENDINGS)]


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


def _find_builder(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
    try:
        return tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        # Community data sets are left out: to list them, TFDS would need TensorFlow and the network.
        known = {"digits", "folder", *tfds.list_builders(with_community_datasets=False)}
        near = difflib.get_close_matches(name, sorted(known), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f'expected "digits", "folder" or one of {_TFDS_LIST}'
        raise ValueError(f"unknown data set data.name={name!r}: {hint}") from error


def _check_prepared(builder: tfds.core.DatasetBuilder) -> None:
    """Raise unless the data set is on disk in a format with random access."""
    name, where = builder.info.full_name, builder.data_path
    if not (where / "dataset_info.json").exists():
        versions = sorted(path.name for path in where.parent.iterdir()) if where.parent.exists() else []
        found = f" (found there: {', '.join(versions)}, read with data.name=NAME:VERSION)" if versions else ""
        raise FileNotFoundError(
            f"TFDS data set {name} is not prepared: no {where}/dataset_info.json{found}. Set data.dir to the directory "
            f"that holds {name}, or prepare it once (TFDS needs TensorFlow for this): "
            f"tfds build {name.rpartition('/')[0]} --file_format=array_record --data_dir={builder.data_dir_root}"
        )
    formats = {file_format.value for file_format in builder.info.available_file_formats()}
    if "array_record" not in formats:
        raise ValueError(
            f"TFDS data set {name} in {where} is stored as {', '.join(sorted(formats))}, which has no random access. "
            f"Convert it once: tfds convert_format --dataset_version_dir={where} --out_file_format=array_record"
        )
