"""What of a run depends on its task: one module for each, with the same functions."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from rmt_jax.tasks import Metric, Task
from rmt_jax.training import classification, detection, segmentation
from rmt_jax.training.config import Config

Arrays = Mapping[str, np.ndarray]


@runtime_checkable
class Kind(Protocol):
    """The functions of a task's module; sources, loaders and metrics are the task's own.

    Attributes:
        BEST: the metric that says which checkpoint is the best.
        BEST_NAME: the same in words.
        SHOWN: metrics in tables.
        NUM_CLASSES: of the data set that the recipes are for.
    """

    BEST: str
    BEST_NAME: str
    SHOWN: tuple[str, ...]
    NUM_CLASSES: int

    def make_task(self, config: Config, num_classes: int) -> Task:
        """The task of a configuration."""

    def open_source(self, config: Config, split: str) -> Any:
        """A split of the data set."""

    def train_loader(self, source: Any, config: Config, **processes: int) -> Any:
        """Batches of a training split."""

    def eval_loader(self, source: Any, config: Config, batch_size: int, **processes: int) -> Any:
        """Batches of an evaluation split."""

    def metric(self, task: Any, source: Any) -> Metric:
        """An empty metric for the pictures of an evaluation split."""

    def training_shapes(self, config: Config) -> dict[str, tuple[tuple[int, ...], Any]]:
        """Shape and type of each part of a training batch, for one picture."""

    def device_batch(self, task: Any, local: Mapping[str, Any]) -> Arrays:
        """Of an evaluation batch what goes to the devices."""

    def add(self, metric: Any, outputs: Arrays, local: Mapping[str, Any], first: int) -> None:
        """Take a batch into a metric: outputs of the whole batch, and this process's part, which begins at `first`."""

    def gather(self, metric: Any) -> None:
        """After the last batch, take in what the other processes have added, where they added something else."""

    def describe_work(self, config: Config, task: Any, loader: Any) -> dict[str, str]:
        """Rows of the summary: what a prediction takes."""

    def describe_augmentation(self, config: Config) -> str:
        """What happens to training pictures."""

    def describe_loss(self, config: Config) -> str:
        """What is minimised."""

    def describe_values(self, values: Mapping[str, float]) -> str:
        """A metric's values in a line of a log."""

    def lowest_classes(self, metric: Any, class_names: Sequence[str]) -> dict[str, str]:
        """The classes that fare worst, in words."""

    def write_evaluation(
        self, workdir: pathlib.Path, metric: Any, raw: Any, source: str, class_names: Sequence[str]
    ) -> dict[str, Any]:
        """Write pictures of an evaluation; returns what evaluation.json says of it.

        metric: in detail. raw: of the raw weights beside their moving average, or None. source: name of the pictures.
        """

    def draw_predictions(
        self, config: Config, loader: Any, predict: Callable[[Mapping[str, Any]], Arrays], workdir: pathlib.Path
    ) -> None:
        """Draw evaluation pictures with their predictions."""


KINDS: Mapping[str, Kind] = {
    "classification": classification,
    "segmentation": segmentation,
    "detection": detection,
}


def kind_of(config: Config) -> Kind:
    """The functions for a configuration's task."""
    return KINDS[config.task]
