"""Where pictures come from: one random-access interface over folders, tars and TFDS data sets. Nothing is decoded."""

import os

from rmt_jax.data.config import DETECTION_NAMES, IMAGE_NAMES, SEGMENTATION_NAMES, DataConfig
from rmt_jax.data.digits import prepare_digits
from rmt_jax.data.folders import FolderSource
from rmt_jax.data.interface import Example, ImageSource
from rmt_jax.data.tars import TarSource
from rmt_jax.data.tfds_source import TfdsSource, find_builder

__all__ = ["Example", "ImageSource", "open_source"]


def open_source(config: DataConfig, split: str) -> ImageSource:
    """One split of the data set that `config` names.

    With `config.eval_fraction`, `split` is `config.train_split` or `config.eval_split` and chooses the side.

    Raises:
        ValueError: an unknown data set or split, a data set without a label for each picture, a folder not laid out
            as `DIR/SPLIT/CLASS/picture.jpg`, a tar that is damaged or compressed.
        FileNotFoundError: the folder, the tars, or the prepared TFDS data set is not there.
    """
    if config.name in SEGMENTATION_NAMES + DETECTION_NAMES:
        what = (
            ("a label for every pixel", "segmentation") if config.name in SEGMENTATION_NAMES else ("boxes", "detection")
        )
        raise ValueError(
            f"data.name={config.name!r} has {what[0]}, and is for {what[1]}: to classify, expected "
            f"{', '.join(IMAGE_NAMES)} or a TFDS name"
        )
    if config.name == "folder":
        return FolderSource(config, split)
    if config.name == "tar":
        return TarSource(config, split)
    data_dir = None if config.dir is None else os.path.expanduser(config.dir)
    if config.name == "digits":
        return TfdsSource(prepare_digits(data_dir), split)
    return TfdsSource(find_builder(config.name, data_dir), split)
