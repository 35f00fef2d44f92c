"""Where pictures with boxes come from: COCO's json, TFDS data sets, and one that makes itself. Nothing is decoded."""

import os

from rmt_jax.data.config import DETECTION_NAMES, IMAGE_NAMES, OWN_NAMES, SEGMENTATION_NAMES, DataConfig
from rmt_jax.data.detection.digits import open_digits
from rmt_jax.data.detection.json_source import open_coco_json
from rmt_jax.data.detection.source import DetectionSource
from rmt_jax.data.detection.tfds_source import DetectionTfdsSource, has_boxes
from rmt_jax.data.tfds_source import features_of, find_builder


def is_detection(config: DataConfig) -> bool:
    """Whether the data set that `config` names has boxes, and no label for every pixel.

    Raises:
        ValueError, FileNotFoundError: there is no such data set.
    """
    if config.name in OWN_NAMES:
        return config.name in DETECTION_NAMES
    return has_boxes(features_of(find_builder(config.name, config.dir and os.path.expanduser(config.dir))))


def open_detection_source(config: DataConfig, split: str) -> DetectionSource:
    """One split of the data set that `config` names.

    Raises:
        ValueError: an unknown data set or split, a data set without boxes or, where they are wanted, without masks.
        FileNotFoundError: the json, a picture or the prepared TFDS data set is not there.
        AnnotationError: the annotations are no COCO instances, or contradict themselves.
    """
    if config.name in IMAGE_NAMES + SEGMENTATION_NAMES:
        raise ValueError(
            f"data.name={config.name!r} has no boxes: for detection expected "
            f"{', '.join(DETECTION_NAMES)} or a TFDS name"
        )
    if config.name == "coco_json":
        return open_coco_json(config, split)
    data_dir = None if config.dir is None else os.path.expanduser(config.dir)
    if config.name == "digits_detection":
        return open_digits(data_dir, split)
    if config.detection.masks:
        raise ValueError(
            f"TFDS's {config.name} has boxes and no masks: set data.detection.masks=False, or read the json of the "
            'data set, with data.name="coco_json" and data.dir'
        )
    return DetectionTfdsSource(find_builder(config.name, data_dir), split)
