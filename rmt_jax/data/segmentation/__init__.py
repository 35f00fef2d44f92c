"""Pictures with a label for every pixel: sources, training crops and whole pictures to evaluate. Imports OpenCV."""

from rmt_jax.data.interface import SegmentationExample, SegmentationSource
from rmt_jax.data.segmentation.classes import palette
from rmt_jax.data.segmentation.labels import IGNORE_LABEL, LabelMapError
from rmt_jax.data.segmentation.pipeline import SegmentationEvalLoader, SegmentationTrainLoader
from rmt_jax.data.segmentation.sources import open_segmentation_source

__all__ = [
    "IGNORE_LABEL",
    "LabelMapError",
    "SegmentationEvalLoader",
    "SegmentationExample",
    "SegmentationSource",
    "SegmentationTrainLoader",
    "open_segmentation_source",
    "palette",
]
