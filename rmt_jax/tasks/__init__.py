"""What a batch means: model, loss, prediction and metric, one file a task."""

from rmt_jax.tasks.average_precision import AveragePrecision
from rmt_jax.tasks.base import Metric, Task
from rmt_jax.tasks.classification import Classification, normalize
from rmt_jax.tasks.detection import Detection, DetectionConfig
from rmt_jax.tasks.distillation import DistillConfig, Teacher
from rmt_jax.tasks.iou import MeanIoU
from rmt_jax.tasks.mask_paste import encode_mask, paste_mask
from rmt_jax.tasks.mixing import MixConfig
from rmt_jax.tasks.segmentation import Segmentation, SegmentationConfig

__all__ = [
    "AveragePrecision",
    "Classification",
    "Detection",
    "DetectionConfig",
    "DistillConfig",
    "MeanIoU",
    "Metric",
    "MixConfig",
    "Segmentation",
    "SegmentationConfig",
    "Task",
    "Teacher",
    "encode_mask",
    "normalize",
    "paste_mask",
]
