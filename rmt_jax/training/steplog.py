"""The numbers of each training step, read without making the device wait."""

import math
from collections.abc import Mapping

import jax
import numpy as np
from jax import Array

from rmt_jax.training.metrics import MetricsWriter
from rmt_jax.training.report import Progress
from rmt_jax.training.setup import Setup


class NonFiniteLossError(RuntimeError):
    """The loss of a step was NaN or infinite."""


class StepLog:
    """Reads the metrics of each step one step late, so that the device always has the next one to do.

    Every `log_every_steps` it writes their means. A loss that is not finite stops the run: nothing computed from it has
    been saved then, because a checkpoint is only saved after `flush`.
    """

    def __init__(self, setup: Setup, writer: MetricsWriter, progress: Progress):
        self._setup, self._writer, self._progress = setup, writer, progress
        self._pending: tuple[int, Mapping[str, Array]] | None = None
        self._window: list[dict[str, float]] = []

    def add(self, step: int, metrics: Mapping[str, Array]) -> None:
        """Take in the metrics of a step that was just dispatched, and read those of the step before."""
        pending, self._pending = self._pending, (step, metrics)
        if pending is not None:
            self._read(*pending)

    def flush(self) -> None:
        """Read what is outstanding and write the means of what has gathered."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            self._read(*pending)
            self._write(pending[0])

    def _read(self, step: int, metrics: Mapping[str, Array]) -> None:
        values = {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
        if not math.isfinite(values["loss"]):
            raise NonFiniteLossError(
                f"The loss of step {step} is {values['loss']} (gradient norm {values['grad_norm']}). Nothing was saved "
                f"from that step on: the same command starts again from the last checkpoint and will come here again. "
                f"Use a new --workdir with a lower optimizer.learning_rate, with optimizer.clip_norm=1.0, or with "
                f"model.dtype='float32'."
            )
        self._window.append(values)
        self._progress.update(step, loss=values["loss"], lr=self._setup.learning_rate(step - 1))
        if step % self._setup.config.log_every_steps == 0:
            self._write(step)

    def _write(self, step: int) -> None:
        if not self._window:
            return
        values = {f"train/{name}": float(np.mean([row[name] for row in self._window])) for name in self._window[0]}
        values["train/lr"] = self._setup.learning_rate(step - 1)
        speed, waiting = self._progress.images_per_second, self._progress.data_wait_share
        if speed is not None and waiting is not None:
            values |= {"train/images_per_second": speed, "train/data_wait": waiting}
        self._writer.write(step, values, epoch=step / self._setup.steps_per_epoch)
        self._window = []
