"""The training loop, one for all tasks: it reads as a list of steps."""

import contextlib
import functools
import pathlib
import time

import jax
from flax import nnx
from rich.console import Console

from rmt_jax.training.checkpoint import Checkpoints, has_checkpoint, load_weights
from rmt_jax.training.config import Config
from rmt_jax.training.environment import write_environment
from rmt_jax.training.evaluate import evaluate, predict_pictures, put_batch
from rmt_jax.training.figures import plot_curves, plot_predictions
from rmt_jax.training.interrupt import StopRequest
from rmt_jax.training.metrics import MetricsWriter, read_metrics
from rmt_jax.training.report import Progress, log, print_results, print_summary
from rmt_jax.training.setup import Setup, prepare
from rmt_jax.training.state import State
from rmt_jax.training.steplog import StepLog
from rmt_jax.training.workdir import open_workdir

PICTURED = 2000  # evaluation pictures among which predictions.png looks for mistakes


def train(config: Config, workdir: pathlib.Path) -> int:
    """Train, or go on training, in a workdir; returns the exit code.

    0 when the run is complete, 130 or 143 when a signal stopped it and it was saved.

    Raises:
        ValueError, FileNotFoundError: before any work, for what cannot run (see `prepare` and `open_workdir`).
        NonFiniteLossError: the loss became NaN or infinite. Nothing is saved from that step on.
    """
    started = time.monotonic()
    main_process = jax.process_index() == 0
    setup = prepare(config)
    if has_checkpoint(workdir) and not (workdir / "config.json").exists():
        raise ValueError(f"The workdir {workdir} holds checkpoints without a config.json: use another --workdir.")
    open_workdir(workdir, config, write=main_process)
    with contextlib.closing(Checkpoints(workdir, config.checkpoint)) as checkpoints:
        start_step = checkpoints.latest_step or 0
        if start_step > setup.total_steps:
            raise ValueError(
                f"The checkpoint in {workdir} is at step {start_step}, beyond the {setup.total_steps} steps of this "
                f"run: raise epochs, or use another --workdir."
            )
        print_summary(
            f"Training in {workdir}",
            setup.summary() | {"start": _describe_start(config, start_step)},
            console=_console(),
        )
        if main_process:
            write_environment(workdir)
        if start_step < setup.total_steps:
            state = checkpoints.restore(start_step, setup.abstract_state) if start_step else _initial_state(setup)
            with (
                StopRequest() as stop,
                MetricsWriter(workdir, resume_step=start_step, enabled=main_process) as writer,
            ):
                _fit(setup, state, start_step, workdir, checkpoints, writer, stop)
            if stop:
                log(f"Saved in {workdir}. The same command goes on from there.", console=_console())
                return stop.exit_code
        else:
            log("This run is complete already: nothing to train.", console=_console())
    print_results(results(workdir), seconds=time.monotonic() - started, workdir=workdir, console=_console())
    return 0


def evaluate_only(config: Config, workdir: pathlib.Path) -> int:
    """Evaluate the latest checkpoint of a workdir, or the weights of `init_from`, and print the results.

    Raises:
        ValueError, FileNotFoundError: nothing to evaluate, or it does not fit the configuration.
    """
    started = time.monotonic()
    trained = has_checkpoint(workdir)
    if not trained and config.init_from is None:
        raise ValueError(
            f"--mode=eval needs weights: the workdir {workdir} holds no checkpoint and init_from is not set. "
            f"Train first, or give --workdir of a trained run or --config.init_from=WORKDIR."
        )
    setup = prepare(config)
    if trained:
        open_workdir(workdir, config, write=False)
        with contextlib.closing(Checkpoints(workdir, config.checkpoint)) as checkpoints:
            step = checkpoints.latest_step or 0
            state = checkpoints.restore(step, setup.abstract_state)
    else:
        step, state = 0, _initial_state(setup)
    print_summary(f"Evaluating {workdir if trained else config.init_from}", setup.summary(), console=_console())
    values = _evaluate(setup, state)
    rows = _result_rows(values, step / setup.steps_per_epoch, "step " + str(step) if trained else "init_from")
    print_results(rows, seconds=time.monotonic() - started, workdir=workdir, console=_console())
    return 0


def results(workdir: pathlib.Path) -> dict[str, dict[str, float]]:
    """Final and best accuracy of raw and EMA weights, from metrics.jsonl: {"final, EMA": {"top1": ...}, ...}."""
    evaluations = [row for row in read_metrics(workdir / "metrics.jsonl") if "val/top1" in row]
    if not evaluations:
        return {}
    rows = _result_rows(evaluations[-1], evaluations[-1]["epoch"], "final")
    for prefix, name in (("val", "raw"), ("val_ema", "EMA")):
        best = max(reversed(evaluations), key=lambda row: row[f"{prefix}/top1"])
        rows[f"best, {name}"] = _result_rows(best, best["epoch"], "best")[f"best, {name}"]
    return rows


def _fit(
    setup: Setup,
    state: State,
    start_step: int,
    workdir: pathlib.Path,
    checkpoints: Checkpoints,
    writer: MetricsWriter,
    stop: StopRequest,
) -> None:
    """From `start_step` to the end, or to the step at which a signal came."""
    config, total = setup.config, setup.total_steps
    progress = Progress(
        total,
        start_step=start_step,
        batch_size=config.batch_size,
        steps_per_epoch=setup.steps_per_epoch,
        console=_console(),
    )
    batches = setup.train_loader.batches(start_step, total)
    with contextlib.closing(batches), progress:
        steps = StepLog(setup, writer, progress)
        for step in range(start_step + 1, total + 1):
            with progress.waiting_for_data():
                batch = put_batch(next(batches), setup.batch_sharding)
            state, metrics = setup.train_step(state, batch)
            steps.add(step, metrics)

            if step % (config.eval_every_epochs * setup.steps_per_epoch) == 0 or step == total:
                steps.flush()
                with progress.paused("evaluating"):
                    values = _evaluate(setup, state)
                    writer.write(step, values, epoch=step / setup.steps_per_epoch)
                    log(_evaluation_line(step / setup.steps_per_epoch, values), console=_console())
                    checkpoints.save(step, state, values)
                    if jax.process_index() == 0:
                        plot_curves(read_metrics(workdir / "metrics.jsonl"), workdir / "curves.png")
            elif stop or (config.checkpoint.every_steps and step % config.checkpoint.every_steps == 0):
                steps.flush()
                checkpoints.save(step, state, None)
            if stop:
                return
        with progress.paused("drawing predictions"):
            _plot_predictions(setup, state, workdir)


def _initial_state(setup: Setup) -> State:
    """Fresh weights, or those of `init_from` with a fresh optimiser."""
    # Drawn op by op: XLA takes minutes over one program that draws all weights, and seconds over the single draws.
    model = setup.task.init_model(nnx.Rngs(setup.config.seed))
    source = setup.config.init_from
    if source is not None:
        fresh = load_weights(model, pathlib.Path(source))
        log(f"Weights from {source}" + (f"; fresh: {', '.join(fresh)}" if fresh else ""), console=_console())
    return setup.init(model)


def _evaluate(setup: Setup, state: State) -> dict[str, float]:
    raw = {"params": state["params"], "batch_stats": state["batch_stats"]}
    weights = {"val": raw, "val_ema": state["ema"]}
    return evaluate(setup.task, setup.predict_step, weights, setup.eval_loader, setup.batch_sharding)


def _plot_predictions(setup: Setup, state: State, workdir: pathlib.Path) -> None:
    pictures = predict_pictures(setup.predict_step, state["ema"], setup.eval_loader, setup.batch_sharding, PICTURED)
    if jax.process_index() == 0:
        names = setup.eval_loader.source.class_names
        plot_predictions(*pictures, class_names=names, path=workdir / "predictions.png")


def _result_rows(values: dict[str, float], epoch: float, name: str) -> dict[str, dict[str, float]]:
    return {
        f"{name}, {label}": {key: values[f"{prefix}/{key}"] for key in ("top1", "top5", "loss")} | {"epoch": epoch}
        for prefix, label in (("val", "raw"), ("val_ema", "EMA"))
    }


def _evaluation_line(epoch: float, values: dict[str, float]) -> str:
    return (
        f"epoch {epoch:g}: top-1 {values['val/top1']:.2f} %, EMA {values['val_ema/top1']:.2f} %, "
        f"loss {values['val/loss']:.4f}, EMA {values['val_ema/loss']:.4f}"
    )


def _describe_start(config: Config, step: int) -> str:
    if step:
        return f"resumes at step {step:,}"
    return f"weights from {config.init_from}" if config.init_from else "fresh weights"


@functools.cache
def _console() -> Console:
    """Of several processes only the first speaks."""
    return Console(quiet=jax.process_index() != 0)
