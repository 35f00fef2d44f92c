"""The training loop, one for all tasks: it reads as a list of steps."""

import contextlib
import json
import pathlib
import time
from typing import Any

import jax

from rmt_jax.convert import CLASSES_FILE, class_differences, has_checkpoint, name_some, workdir_classes
from rmt_jax.training.checkpoint import Checkpoints
from rmt_jax.training.config import Config
from rmt_jax.training.curves import plot_curves
from rmt_jax.training.disk import check_space, checkpoint_size
from rmt_jax.training.environment import write_environment
from rmt_jax.training.evaluation import draw_predictions, evaluate_state, put_batch
from rmt_jax.training.interrupt import Stopped, StopRequest
from rmt_jax.training.lock import WorkdirLock
from rmt_jax.training.metrics import MetricsWriter, read_metrics, replace_file
from rmt_jax.training.preemption import PreemptionNotice
from rmt_jax.training.recovery import recover
from rmt_jax.training.report import Progress, log, print_results, print_summary
from rmt_jax.training.results import evaluation_line, metric_values, run_results, write_evaluation
from rmt_jax.training.setup import initial_state, prepare
from rmt_jax.training.steplog import StepLog, skipped_steps
from rmt_jax.training.watchdog import Status
from rmt_jax.training.workdir import open_workdir


class Training:
    """A run in a workdir, new or gone on with: checked, and its state at hand, when it is made.

    Raises:
        ValueError, FileNotFoundError: what cannot run (see `prepare`, `open_workdir` and `initial_state`), a workdir
            in use by another run, checkpoints of which none is whole, or one that lies beyond the end.
    """

    def __init__(self, config: Config, workdir: pathlib.Path, status: Status | None = None):
        self.status = status or Status()
        self.config, self.workdir = config, workdir
        self.is_main = jax.process_index() == 0
        self.setup = prepare(config)
        resumes = has_checkpoint(workdir)
        if resumes and not (workdir / "config.json").exists():
            raise ValueError(f"The workdir {workdir} holds checkpoints without a config.json: use another --workdir.")
        open_workdir(workdir, config, write=False)
        if resumes:
            self._check_classes()
        else:  # before anything is written: init_from may be refused
            self.state = initial_state(self.setup)
        with contextlib.ExitStack() as opened:
            if self.is_main:
                check_space(workdir, config.checkpoint, checkpoint_size(self.setup.program.abstract_state))
                opened.enter_context(WorkdirLock(workdir))
            self._open(opened)
            self.opened = opened.pop_all()  # closed by `run`

    def _open(self, opened: contextlib.ExitStack) -> None:
        """Find the checkpoint to go on from, and restore it."""
        config, workdir = self.config, self.workdir
        self.start_step = recover(workdir)
        rows = self._metrics_so_far()
        open_workdir(workdir, config, write=self.is_main)
        if self.is_main:
            names = self.setup.train_loader.source.class_names
            replace_file(workdir / CLASSES_FILE, (json.dumps(names, indent=2) + "\n").encode())
        best = self._best_metric
        scores = {row["step"]: row[best] for row in rows if best in row}
        self.checkpoints = opened.enter_context(contextlib.closing(Checkpoints(workdir, config.checkpoint, scores)))
        # A checkpoint is saved before its evaluation: a kill between the two leaves the evaluation to be done.
        self.evaluates_first = self._evaluates_at(self.start_step) and self.start_step not in scores
        if self.start_step > self.setup.total_steps:
            raise ValueError(
                f"The checkpoint in {workdir} is at step {self.start_step}, beyond the {self.setup.total_steps} steps "
                f"of this run: raise epochs, or use another --workdir."
            )
        if self.start_step:
            self.state = self.checkpoints.restore(self.start_step, self.setup.program.abstract_state)
        if self.is_main:
            write_environment(workdir)

    def run(self) -> int:
        """Train to the end; returns the exit code: 0, or 130 or 143 when a signal came and the run was saved.

        Raises:
            NonFiniteLossError: too many steps in a row whose loss or gradients are not finite.
        """
        started = time.monotonic()
        rows = self.setup.summary() | {"start": self._start()}
        print_summary(f"Training in {self.workdir}", rows)
        # The requests to stop are the outermost, because the last save is waited for when the checkpoints are closed.
        with StopRequest() as stop, PreemptionNotice(stop), self.opened:
            complete = self.start_step == self.setup.total_steps and not self.evaluates_first
            if complete:
                log("This run is complete already: nothing to train.")
            else:
                with MetricsWriter(self.workdir, resume_step=self.start_step, enabled=self.is_main) as writer:
                    complete = self._fit(writer, stop)
        if not complete:
            if not stop:
                log("Another process asked to stop.")
            log(f"Saved in {self.workdir}. The same command goes on from there.")
            return stop.exit_code
        self._report_unreadable()
        seconds = time.monotonic() - started
        print_results(run_results(self.setup.kind, self.workdir), seconds=seconds, workdir=self.workdir)
        if skipped := skipped_steps(self.workdir, self.setup.total_steps).total:
            log(f"Skipped {skipped:,} of the {self.setup.total_steps:,} steps: loss or gradients were not finite.")
        return 0

    def _fit(self, writer: MetricsWriter, stop: StopRequest) -> bool:
        """From the first step to the last, or to the one at which a signal came; whether it was the last."""
        config, setup, total = self.config, self.setup, self.setup.total_steps
        progress = Progress(
            total,
            start_step=self.start_step,
            batch_size=config.batch_size,
            steps_per_epoch=setup.steps_per_epoch,
            status=self.status,
        )
        batches = setup.train_loader.batches(self.start_step, total)
        with contextlib.closing(batches), progress:
            skipped = skipped_steps(self.workdir, self.start_step)
            steps = StepLog(setup, writer, progress, self.workdir, skipped)
            if self.evaluates_first:
                with progress.paused("evaluating"):
                    if not self._evaluate(self.start_step, writer, stop):
                        return False
            for step in range(self.start_step + 1, total + 1):
                with progress.waiting_for_data():
                    local = next(batches)
                    batch = put_batch(local, setup.batch_sharding, stop=bool(stop))
                self.state, metrics = setup.train_step(self.state, batch)
                steps.add(step, metrics, local)

                if self._evaluates_at(step):
                    steps.flush()
                    with progress.paused("evaluating"):
                        # What skips step after step is no checkpoint to go back to: the good ones are kept.
                        if step == total or steps.stop or not steps.skipped.in_a_row:
                            self.checkpoints.save(step, self.state)
                        if not self._evaluate(step, writer, stop):
                            self.checkpoints.save(step, self.state)
                            return False
                elif steps.stop or (config.checkpoint.every_steps and step % config.checkpoint.every_steps == 0):
                    steps.flush()
                    if steps.stop or not steps.skipped.in_a_row:
                        self.checkpoints.save(step, self.state)
                if steps.stop and step < total:
                    return False
            with progress.paused("drawing predictions"):
                draw_predictions(setup, self.state["ema"], self.workdir)
        return True

    def _evaluate(self, step: int, writer: MetricsWriter, stop: StopRequest) -> bool:
        """Evaluate and write what came out; False, with nothing written, where a stop was asked for meanwhile."""
        epoch = step / self.setup.steps_per_epoch
        try:
            metrics = evaluate_state(self.setup, self.state, self.status, stop)
        except Stopped:
            return False
        values = metric_values(metrics)
        log(evaluation_line(self.setup.kind, epoch, values))
        if self.is_main and step == self.setup.total_steps:
            write_evaluation(self.workdir, self.setup, metrics, source=str(self.workdir), step=step, weights="ema")
        # After what else an evaluation leaves: a resume at this step evaluates again where this row is missing.
        writer.write(step, values, epoch=epoch)
        writer.sync()
        self.checkpoints.add_score(step, values[self._best_metric])
        if self.is_main:
            plot_curves(read_metrics(self.workdir / "metrics.jsonl"), self.workdir / "curves.png")
        return True

    def _report_unreadable(self) -> None:
        for loader, fate in ((self.setup.train_loader, "replaced by others"), (self.setup.eval_loader, "left out")):
            if loader.unreadable:
                log(f"Unreadable pictures of {loader.source.name}, {fate}: {', '.join(loader.unreadable.ids.values())}")

    def _check_classes(self) -> None:
        """A data set elsewhere is allowed to a resumed run, one with other classes is not."""
        differences = class_differences(workdir_classes(self.workdir), self.setup.train_loader.source.class_names)
        if differences:
            raise ValueError(
                f"The run in {self.workdir} is of a data set with other classes: {name_some(differences)}. "
                f"Resume it with its own data, or use another --workdir."
            )

    @property
    def _best_metric(self) -> str:
        """What says which checkpoint is the best, in the rows of metrics.jsonl."""
        return f"val_ema/{self.setup.kind.BEST}"

    def _evaluates_at(self, step: int) -> bool:
        period = self.config.eval_every_steps or self.config.eval_every_epochs * self.setup.steps_per_epoch
        return step > 0 and (step % period == 0 or step == self.setup.total_steps)

    def _metrics_so_far(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl up to the checkpoint; the others are about to be repeated."""
        path = self.workdir / "metrics.jsonl"
        rows = read_metrics(path) if path.exists() else []
        last = rows[-1]["step"] if rows else 0
        if last and not self.start_step:
            log(f"No checkpoint is left of the run in {self.workdir}, which came to step {last}.")
        if last < self.start_step:
            log(
                f"metrics.jsonl ends at step {last}, before the checkpoint of step {self.start_step}: what was "
                f"measured between is lost, a best evaluation too."
            )
        return [row for row in rows if row["step"] <= self.start_step]

    def _start(self) -> str:
        if self.start_step:
            return f"resumes at step {self.start_step:,}"
        return f"weights from {self.config.init_from}" if self.config.init_from else "fresh weights"
