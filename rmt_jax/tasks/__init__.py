"""What a batch means: model, loss, prediction and metric, one file a task."""

from rmt_jax.tasks.base import Metric, Task
from rmt_jax.tasks.classification import Classification, normalize

__all__ = ["Classification", "Metric", "Task", "normalize"]
