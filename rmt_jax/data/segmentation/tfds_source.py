"""TFDS data sets with a label map for each picture, by position."""

import tensorflow_datasets as tfds

from rmt_jax.data.config import DataConfig
from rmt_jax.data.interface import SegmentationExample, SegmentationSource
from rmt_jax.data.segmentation import ade20k
from rmt_jax.data.segmentation.classes import numbered
from rmt_jax.data.segmentation.labels import LabelMapError, decode_label_map
from rmt_jax.data.tfds_source import TfdsRecords, features_of

# What TFDS's data sets call their label maps.
_LABEL_MAPS = ("annotation", "segmentation_mask", "segmentation_label", "label_map")

_SCENE_PARSE = "scene_parse150"


class SegmentationTfdsSource(SegmentationSource):
    """One split of a prepared TFDS data set with the features `image` and one of `_LABEL_MAPS`, as array_record.

    Raises:
        FileNotFoundError: it is not prepared.
        ValueError: it has no such features or split, or nothing says how many classes it has.
    """

    def __init__(self, builder: tfds.core.DatasetBuilder, split: str, config: DataConfig) -> None:
        features = features_of(builder)
        self._label_map = next(
            (name for name in _LABEL_MAPS if isinstance(features.get(name), tfds.features.Image)), ""
        )
        if not (isinstance(features.get("image"), tfds.features.Image) and self._label_map):
            raise ValueError(
                f"TFDS data set {builder.info.full_name} has the features {', '.join(features)}: expected a picture "
                f"`image` and a label map `{'` or `'.join(_LABEL_MAPS)}`"
            )
        self._records = TfdsRecords(builder, split, ("image", self._label_map))
        super().__init__(self._records.name, self._names(builder, features[self._label_map], config))

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> SegmentationExample:
        record, record_id = self._records[index]
        return SegmentationExample(record["image"], record[self._label_map], record_id)

    def _names(
        self, builder: tfds.core.DatasetBuilder, feature: tfds.features.Image, config: DataConfig
    ) -> tuple[str, ...]:
        if builder.info.name == _SCENE_PARSE:
            self._check_scene_parse(builder)
            ade20k.check_reduced(config)
            return ade20k.CLASS_NAMES
        if isinstance(feature, tfds.features.LabeledImage) and feature.num_classes:
            return tuple(feature.names)[config.segmentation.reduce_zero_label :]
        if config.segmentation.num_classes:
            return numbered(config.segmentation.num_classes)
        raise ValueError(
            f"TFDS does not say how many classes {builder.info.full_name} has: set data.segmentation.num_classes (not "
            "counting label 0 with data.segmentation.reduce_zero_label)"
        )

    def _check_scene_parse(self, builder: tfds.core.DatasetBuilder) -> None:
        record, record_id = self._records[0]
        try:
            decode_label_map(record[self._label_map], record_id)
        except LabelMapError as error:
            raise ValueError(
                f"TFDS's {builder.info.full_name} holds the challenge of 2017, whose label maps are of instances of "
                "100 things, and not of the 150 classes of ADE20K: download ADEChallengeData2016 and set "
                'data.name="ade20k" and data.dir'
            ) from error
