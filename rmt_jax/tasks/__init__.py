"""What a batch means: model, loss, prediction and metric, one file a task."""

from rmt_jax.tasks.base import Metric, Task
from rmt_jax.tasks.classification import Classification, normalize
from rmt_jax.tasks.distillation import DistillConfig, Teacher
from rmt_jax.tasks.mixing import MixConfig

__all__ = ["Classification", "DistillConfig", "Metric", "MixConfig", "Task", "Teacher", "normalize"]
