"""ImageNet-1k (ILSVRC 2012) as it is handed out: two tars, and the lists of classes that TFDS carries."""

import functools
import re

import tensorflow_datasets as tfds

TRAIN_TAR = "ILSVRC2012_img_train.tar"
VALIDATION_TAR = "ILSVRC2012_img_val.tar"

# Bytes of the tars and pictures in them.
TAR_SIZES = {TRAIN_TAR: 147_897_477_120, VALIDATION_TAR: 6_744_924_160}
PICTURES = {TRAIN_TAR: 1_281_167, VALIDATION_TAR: 50_000}

HOW_TO_DOWNLOAD = (
    f"{TRAIN_TAR} (138 GB) and {VALIDATION_TAR} (6.3 GB) from https://image-net.org/download-images, which needs an "
    "account there"
)

_VALIDATION_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")


@functools.cache
def class_names() -> tuple[str, ...]:
    """The 1,000 synsets in the order of their labels, n01440764 first."""
    return tuple(_read_list("labels.txt"))


def validation_class(name: str) -> str:
    """The synset of a validation picture, by its name such as "ILSVRC2012_val_00000001.JPEG".

    Raises:
        ValueError: not the name of a validation picture.
    """
    match = _VALIDATION_NAME.fullmatch(name)
    number = int(match[1]) if match else 0
    if not 1 <= number <= PICTURES[VALIDATION_TAR]:
        raise ValueError(
            f"{name!r} is no validation picture of ImageNet: expected ILSVRC2012_val_00000001.JPEG to "
            "ILSVRC2012_val_00050000.JPEG, the names that the list of labels goes by"
        )
    return _validation_classes()[number - 1]


@functools.cache
def _validation_classes() -> tuple[str, ...]:
    return tuple(_read_list("validation_labels.txt"))


def _read_list(name: str) -> list[str]:
    """A list that TFDS's own builder of imagenet2012 reads."""
    return tfds.core.tfds_path(f"datasets/imagenet2012/{name}").read_text().split()
