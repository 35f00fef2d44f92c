"""The numbers of each training step, read without making the device wait; what is done about those not finite."""

import io
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from rmt_jax.training.metrics import MetricsWriter, read_metrics, replace_file
from rmt_jax.training.report import Progress, log, log_from_here
from rmt_jax.training.setup import Setup
from rmt_jax.training.slowdata import SlowData

SKIPPED, IN_A_ROW = "train/skipped", "train/skipped_in_a_row"  # of a window, and up to its end


class NonFiniteLossError(RuntimeError):
    """More steps in a row than allowed had a loss or gradients that are NaN or infinite."""


class Skipped(NamedTuple):
    """Steps of a run that changed nothing, because their loss or gradients were not finite."""

    total: int = 0
    in_a_row: int = 0  # those of them that came last, with no other step after them


class _Step(NamedTuple):
    number: int
    metrics: Mapping[str, Array]
    batch: Mapping[str, np.ndarray]


class StepLog:
    """Reads the metrics of each step one step late, so that the device always has the next one to do.

    Every `log_every_steps` it writes their means, in which skipped steps are counted and nothing else. More than
    `max_skipped_steps` of them in a row stop the run.

    Args:
        setup: of the run.
        writer: of metrics.jsonl.
        progress: to be told.
        workdir: gets nonfinite/step_N.npz, the batch of the step that stopped the run.
        skipped: before the first step.
    """

    def __init__(
        self, setup: Setup, writer: MetricsWriter, progress: Progress, workdir: pathlib.Path, skipped: Skipped
    ):
        self._setup, self._writer, self._progress, self._workdir = setup, writer, progress, workdir
        self.skipped = skipped
        self._pending: _Step | None = None
        self._window: list[dict[str, float]] = []
        self._slow_data = SlowData(setup.config.data)
        self.stop = False  # whether any process asked for it, up to the last step read

    def add(self, number: int, metrics: Mapping[str, Array], batch: Mapping[str, np.ndarray]) -> None:
        """Take in the metrics of a step that was just dispatched, and read those of the step before.

        batch: this process's part of what the step was given.

        Raises:
            NonFiniteLossError: see the class.
        """
        pending, self._pending = self._pending, _Step(number, metrics, batch)
        if pending is not None:
            self._read(pending)

    def flush(self) -> None:
        """Read what is outstanding, and write the means of what has gathered for good: a checkpoint follows."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            self._read(pending)
            self._write(pending.number)
            self._writer.sync()

    def _read(self, step: _Step) -> None:
        values = {name: float(value) for name, value in jax.device_get(dict(step.metrics)).items()}
        self.stop |= values.pop("stop", 0.0) > 0
        self._window.append(values)
        if values["skipped"]:
            self._skip(step, values["loss"], values["grad_norm"])
        else:
            self.skipped = Skipped(self.skipped.total)
            self._progress.update(step.number, loss=values["loss"], lr=self._setup.learning_rate(step.number - 1))
        if slow := self._slow_data.check(self._progress.data_wait_share):
            log_from_here(slow)
        if step.number % self._setup.config.log_every_steps == 0:
            self._write(step.number)

    def _skip(self, step: _Step, loss: float, norm: float) -> None:
        self.skipped = Skipped(self.skipped.total + 1, self.skipped.in_a_row + 1)
        if self.skipped.in_a_row > self._setup.config.max_skipped_steps:
            self._write(step.number)
            raise NonFiniteLossError(self._why(step, loss, norm, save_batch(self._workdir, step.number, step.batch)))
        total, row = self.skipped
        log(f"step {step.number}: loss {loss}, gradient norm {norm}: skipped ({total} so far, {row} in a row)")

    def _why(self, step: _Step, loss: float, norm: float, file: pathlib.Path) -> str:
        limit, good = self._setup.config.max_skipped_steps, step.number - self.skipped.in_a_row
        before = f", and nor were those of the {limit} step{'s' * (limit > 1)} before it, which were skipped"
        return (
            f"The loss of step {step.number} is {loss}, its gradient norm {norm}: not finite{before if limit else ''} "
            f"(max_skipped_steps={limit}). Every checkpoint is of weights up to step {good}: the "
            f"same command starts again from the last one and will come here again.\n"
            f"The batch of step {step.number} as it went to the devices is in {file}: "
            f"dict(numpy.load({str(file)!r})) has {', '.join(step.batch)}.\n"
            f"Where the pictures are in order, use a new --workdir with a lower optimizer.learning_rate, with "
            f"optimizer.clip_norm=1.0, or with model.dtype='float32'."
        )

    def _write(self, number: int) -> None:
        if not self._window:
            return
        finite = [row for row in self._window if not row["skipped"]]
        names = [name for name in self._window[0] if name != "skipped"] if finite else []
        values = {f"train/{name}": float(np.mean([row[name] for row in finite])) for name in names}
        values |= {SKIPPED: len(self._window) - len(finite), IN_A_ROW: self.skipped.in_a_row}
        values["train/lr"] = self._setup.learning_rate(number - 1)
        speed, waiting = self._progress.images_per_second, self._progress.data_wait_share
        if speed is not None and waiting is not None:
            values |= {"train/images_per_second": speed, "train/data_wait": waiting}
        self._writer.write(number, values, epoch=number / self._setup.steps_per_epoch)
        self._window = []


def save_batch(workdir: pathlib.Path, step: int, batch: Mapping[str, np.ndarray]) -> pathlib.Path:
    """Write this process's part of a batch to workdir/nonfinite; returns the file's name."""
    part = f".process_{jax.process_index()}" if jax.process_count() > 1 else ""
    path = workdir / "nonfinite" / f"step_{step}{part}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    arrays: dict[str, Any] = dict(batch)
    np.savez(content, **arrays)
    replace_file(path, content.getvalue())
    return path


def skipped_steps(workdir: pathlib.Path, step: int) -> Skipped:
    """What metrics.jsonl says of the steps up to `step`."""
    path = workdir / "metrics.jsonl"
    rows = [row for row in read_metrics(path) if row["step"] <= step and SKIPPED in row] if path.exists() else []
    return Skipped(int(sum(row[SKIPPED] for row in rows)), int(rows[-1][IN_A_ROW])) if rows else Skipped()
