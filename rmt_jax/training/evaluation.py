"""One pass over the evaluation split, with raw and EMA weights of a run or with any others."""

import contextlib
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import NamedSharding

from rmt_jax.convert import has_checkpoint, read_weights
from rmt_jax.tasks import Metric
from rmt_jax.training.config import Config
from rmt_jax.training.eval_setup import EvalSetup, prepare_evaluation
from rmt_jax.training.interrupt import Stopped, StopRequest
from rmt_jax.training.report import EVALUATION_FILES, print_results, print_summary
from rmt_jax.training.results import WEIGHTS, metric_values, result_rows, write_evaluation
from rmt_jax.training.state import State, Tree
from rmt_jax.training.watchdog import Status
from rmt_jax.training.workdir import open_workdir


class Evaluation:
    """The latest checkpoint of a workdir, or else the weights of `init_from`: checked and loaded when it is made.

    Raises:
        ValueError, FileNotFoundError: nothing to evaluate, it does not fit the configuration, or the workdir cannot be
            written.
    """

    def __init__(self, config: Config, workdir: pathlib.Path, status: Status | None = None):
        self.status = status or Status()
        trained = has_checkpoint(workdir)
        if not trained and config.init_from is None:
            raise ValueError(
                f"--mode=eval needs weights: the workdir {workdir} holds no checkpoint and init_from is not set. "
                f"Train first, or give --workdir of a trained run, or --config.init_from=WEIGHTS."
            )
        if trained:
            open_workdir(workdir, config, write=False)
        self.workdir = workdir
        self.source = str(workdir) if trained else str(config.init_from)
        self.setup = prepare_evaluation(config)
        # Both of a run; of anything else what it holds, the moving average where there is one.
        kinds = {"val": "raw", "val_ema": "ema"} if trained else {"val": None}
        read = {prefix: read_weights(self.source, weights=kind) for prefix, kind in kinds.items()}
        self.step: int | None = read["val"].provenance.get("step")
        self.kind = "ema" if trained else str(read["val"].provenance["weights"])  # of the weights in detail
        where = f"the workdir {workdir}" if trained else f"init_from={self.source!r}"
        self.weights = {prefix: self.setup.place(weights, where) for prefix, weights in read.items()}
        try:
            workdir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"The workdir {workdir} cannot be written: {error.strerror}. Choose another with --workdir."
            ) from error

    def run(self) -> int:
        """Evaluate, print the results and write them into the workdir; returns the exit code, 0."""
        started = time.monotonic()
        print_summary(f"Evaluating {self.source}", self.setup.summary())
        with self.status.doing("evaluating"):
            metrics = evaluate(self.setup, self.weights, self.status)
        if jax.process_index() == 0:
            write_evaluation(self.workdir, self.setup, metrics, source=self.source, step=self.step, weights=self.kind)
        draw_predictions(self.setup, self.weights.get("val_ema", self.weights["val"]), self.workdir)
        kind = self.setup.kind
        lowest = kind.lowest_classes(metrics.get("val_ema", metrics["val"]), self.setup.class_names)
        print_summary(f"Classes with the lowest {kind.BEST_NAME}", lowest)
        name = "init_from" if self.step is None else f"step {self.step}"
        rows = result_rows(kind, metric_values(metrics), name, self._labels())
        seconds = time.monotonic() - started
        print_results(rows, seconds=seconds, workdir=self.workdir, files=EVALUATION_FILES)
        return 0

    def _labels(self) -> dict[str, str]:
        """{prefix of the metrics: name of the weights}."""
        if "val_ema" in self.weights:
            return WEIGHTS
        return {"val": {"ema": "EMA", "raw": "raw"}.get(self.kind, "raw or EMA not stated")}


def evaluate(
    setup: EvalSetup, weights: Mapping[str, Tree], status: Status, stop: StopRequest | None = None
) -> dict[str, Metric]:
    """Metrics of several weights of one model in one pass, by the prefix of their metrics.

    Args:
        setup: of the evaluation.
        weights: {"val": {params, batch_stats}, "val_ema": ...}.
        status: told of each batch.
        stop: of this process.

    Raises:
        Stopped: a process asked for it; all processes raise it, at the same batch.
    """
    metrics = {prefix: setup.kind.metric(setup.task, setup.eval_loader.source) for prefix in weights}
    with contextlib.closing(iter(setup.eval_loader)) as batches:
        for local in batches:
            batch, first = _put(setup, local, stop=bool(stop)), jax.process_index() * len(local["mask"])
            outputs = {prefix: setup.predict_step(tree, batch) for prefix, tree in weights.items()}
            for prefix, output in outputs.items():
                values = jax.device_get(output)
                if values.pop("stop"):
                    raise Stopped
                setup.kind.add(metrics[prefix], values, local, first)
            status.progressed()
    for metric in metrics.values():
        setup.kind.gather(metric)
    return metrics


def evaluate_state(setup: EvalSetup, state: State, status: Status, stop: StopRequest) -> dict[str, Metric]:
    """Metrics of the raw weights of a run and of their moving average, "val" and "val_ema"; see `evaluate`."""
    if not setup.config.ema_decay:  # the moving average is the weights themselves
        metrics = evaluate(setup, {"val": state["ema"]}, status, stop)
        return metrics | {"val_ema": metrics["val"]}
    raw = {"params": state["params"], "batch_stats": state["batch_stats"]}
    return evaluate(setup, {"val": raw, "val_ema": state["ema"]}, status, stop)


def draw_predictions(setup: EvalSetup, weights: Tree, workdir: pathlib.Path) -> None:
    """Draw evaluation pictures with their predictions into the workdir."""

    def predict(local: Mapping[str, Any]) -> Mapping[str, np.ndarray]:
        outputs: Mapping[str, np.ndarray] = jax.device_get(setup.predict_step(weights, _put(setup, local)))
        return outputs

    setup.kind.draw_predictions(setup.config, setup.eval_loader, predict, workdir)


def _put(setup: EvalSetup, local: Mapping[str, Any], *, stop: bool = False) -> dict[str, Array]:
    return put_batch(setup.kind.device_batch(setup.task, local), setup.batch_sharding, stop=stop)


def put_batch(batch: Mapping[str, np.ndarray], sharding: NamedSharding, *, stop: bool = False) -> dict[str, Array]:
    """The global batch that the processes' own parts make up, on the devices.

    stop: whether this process asks for a stop; goes along as "stop", and comes back as the decision of all.
    """
    local = {**batch, "stop": np.full(len(batch["image"]), stop)}
    return {key: jax.make_array_from_process_local_data(sharding, value) for key, value in local.items()}
