"""What the training loop asks of a task."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from flax import nnx
from jax import Array


@runtime_checkable
class Metric(Protocol):
    """Sums and counts on the host."""

    def add(self, outputs: Mapping[str, np.ndarray]) -> None:
        """Take in what `Task.predict` returned for one batch."""

    def compute(self) -> dict[str, float]:
        """Values over everything added: {"top1": percent, ...}."""


@runtime_checkable
class Task(Protocol):
    """What a batch means: the model, its loss, its predictions and their metric."""

    @property
    def inseparable(self) -> int:
        """Consecutive samples of a prepared batch that must be computed together."""

    def init_model(self, rngs: nnx.Rngs) -> nnx.Module:
        """A model with fresh weights, in training mode."""

    def prepare(self, batch: Mapping[str, Array], key: Array, frozen: Any) -> dict[str, Array]:
        """What training computes from a whole batch before any gradient; `frozen` are weights that never change.

        The leading axis counts samples, or groups of `inseparable` samples.
        """

    def loss(self, model: Any, batch: Mapping[str, Array], rngs: nnx.Rngs) -> tuple[Array, dict[str, Array]]:
        """Of a prepared batch or a part of it: (scalar loss, scalar metrics of the batch, "loss" among them)."""

    def predict(self, model: Any, batch: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs of a model in evaluation mode, one row a sample."""
