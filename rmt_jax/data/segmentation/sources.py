"""Where pictures with label maps come from: folders, TFDS data sets, and one that makes itself. Nothing is decoded."""

import os

from rmt_jax.data.config import DETECTION_NAMES, IMAGE_NAMES, SEGMENTATION_NAMES, DataConfig
from rmt_jax.data.digits import prepare
from rmt_jax.data.interface import SegmentationSource
from rmt_jax.data.segmentation.digits import DigitsSegmentation
from rmt_jax.data.segmentation.folders import open_ade20k, open_label_folder
from rmt_jax.data.segmentation.tfds_source import SegmentationTfdsSource
from rmt_jax.data.tfds_source import find_builder


def open_segmentation_source(config: DataConfig, split: str) -> SegmentationSource:
    """One split of the data set that `config` names.

    Raises:
        ValueError: an unknown data set or split, a data set without label maps or whose number of classes nothing says.
        FileNotFoundError: the folder, a label map or the prepared TFDS data set is not there.
    """
    source = _open(config, split)
    wanted = config.segmentation.num_classes
    if wanted not in (0, source.num_classes):
        raise ValueError(
            f"data.segmentation.num_classes={wanted}, but {source.name} has {source.num_classes} classes: leave it out"
        )
    return source


def _open(config: DataConfig, split: str) -> SegmentationSource:
    if config.name in IMAGE_NAMES + DETECTION_NAMES:
        what = "boxes" if config.name in DETECTION_NAMES else "one label a picture"
        raise ValueError(
            f"data.name={config.name!r} has {what}: for segmentation expected "
            f"{', '.join(SEGMENTATION_NAMES)} or a TFDS name"
        )
    if config.name == "ade20k":
        return open_ade20k(config, split)
    if config.name == "label_folder":
        return open_label_folder(config, split)
    data_dir = None if config.dir is None else os.path.expanduser(config.dir)
    if config.name == "digits_segmentation":
        return SegmentationTfdsSource(prepare(DigitsSegmentation, data_dir), split, config)
    return SegmentationTfdsSource(find_builder(config.name, data_dir), split, config)
