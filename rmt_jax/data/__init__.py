"""Data: pictures from folders, tars and TFDS data sets to batches, by Grain. Knows no model and no task."""

from rmt_jax.data.batches import TooManyUnreadableError
from rmt_jax.data.config import AugmentConfig, DataConfig, RandAugmentConfig, SegmentationDataConfig, TokenLabelsConfig
from rmt_jax.data.decode import CorruptImageError, decode
from rmt_jax.data.detection_config import DetectionDataConfig
from rmt_jax.data.digits import Digits, prepare_digits
from rmt_jax.data.pipeline import EvalLoader, TrainLoader
from rmt_jax.data.sources import Example, ImageSource, open_source
from rmt_jax.data.transforms import eval_transform

__all__ = [
    "AugmentConfig",
    "CorruptImageError",
    "DataConfig",
    "DetectionDataConfig",
    "Digits",
    "EvalLoader",
    "Example",
    "ImageSource",
    "RandAugmentConfig",
    "SegmentationDataConfig",
    "TokenLabelsConfig",
    "TooManyUnreadableError",
    "TrainLoader",
    "decode",
    "eval_transform",
    "open_source",
    "prepare_digits",
]
