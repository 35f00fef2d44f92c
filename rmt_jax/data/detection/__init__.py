"""Pictures with boxes and masks: sources, training canvases and whole pictures to evaluate. Imports OpenCV."""

from rmt_jax.data.detection.annotations import AnnotationError, Annotations
from rmt_jax.data.detection.pipeline import DetectionEvalLoader, DetectionTrainLoader
from rmt_jax.data.detection.source import DetectionSource
from rmt_jax.data.detection.sources import open_detection_source

__all__ = [
    "AnnotationError",
    "Annotations",
    "DetectionEvalLoader",
    "DetectionSource",
    "DetectionTrainLoader",
    "open_detection_source",
]
