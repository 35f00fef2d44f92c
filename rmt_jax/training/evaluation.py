"""One pass over the evaluation split with raw and EMA weights."""

import contextlib
import pathlib
import time
from collections.abc import Mapping

import jax
import numpy as np
from jax import Array
from jax.sharding import NamedSharding

from rmt_jax.convert import has_checkpoint
from rmt_jax.training.checkpoint import Checkpoints
from rmt_jax.training.config import Config
from rmt_jax.training.figures import plot_predictions
from rmt_jax.training.report import print_results, print_summary
from rmt_jax.training.results import result_rows
from rmt_jax.training.setup import Setup, initial_state, prepare
from rmt_jax.training.state import State, Tree
from rmt_jax.training.workdir import open_workdir

PICTURED = 2000  # evaluation pictures among which predictions.png looks for mistakes


class Evaluation:
    """The latest checkpoint of a workdir, or else the weights of `init_from`: checked and loaded when it is made.

    Raises:
        ValueError, FileNotFoundError: nothing to evaluate, or it does not fit the configuration.
    """

    def __init__(self, config: Config, workdir: pathlib.Path):
        trained = has_checkpoint(workdir)
        if not trained and config.init_from is None:
            raise ValueError(
                f"--mode=eval needs weights: the workdir {workdir} holds no checkpoint and init_from is not set. "
                f"Train first, or give --workdir of a trained run, or --config.init_from=WEIGHTS."
            )
        self.setup = prepare(config)
        self.source = workdir if trained else pathlib.Path(str(config.init_from))
        if not trained:
            self.step, self.state = 0, initial_state(self.setup)
            return
        open_workdir(workdir, config, write=False)
        with contextlib.closing(Checkpoints(workdir, config.checkpoint)) as checkpoints:
            self.step = checkpoints.latest_step or 0
            self.state = checkpoints.restore(self.step, self.setup.abstract_state)

    def run(self) -> int:
        """Evaluate and print the results; returns the exit code, 0."""
        started = time.monotonic()
        print_summary(f"Evaluating {self.source}", self.setup.summary())
        values = evaluate(self.setup, self.state) | {"epoch": self.step / self.setup.steps_per_epoch}
        rows = result_rows(values, f"step {self.step}" if self.step else "init_from")
        print_results(rows, seconds=time.monotonic() - started, workdir=self.source)
        return 0


def evaluate(setup: Setup, state: State) -> dict[str, float]:
    """{"val/top1": ..., "val_ema/top1": ...} of the raw weights and of their moving average, in one pass."""
    raw = {"params": state["params"], "batch_stats": state["batch_stats"]}
    weights = {"val": raw, "val_ema": state["ema"]}
    metrics = {prefix: setup.task.metric() for prefix in weights}
    for local in setup.eval_loader:
        batch = put_batch(local, setup.batch_sharding)
        outputs = {prefix: setup.predict_step(tree, batch) for prefix, tree in weights.items()}
        for prefix, output in outputs.items():
            metrics[prefix].add(jax.device_get(output))
    return {f"{prefix}/{name}": value for prefix, metric in metrics.items() for name, value in metric.compute().items()}


def plot_pictures(setup: Setup, weights: Tree, path: pathlib.Path) -> None:
    """Draw evaluation pictures with their predictions, the mistakes first; looks through this process's first ones."""
    images: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    probabilities: list[np.ndarray] = []
    with contextlib.closing(iter(setup.eval_loader)) as batches:
        for local in batches:
            output = jax.device_get(setup.predict_step(weights, put_batch(local, setup.batch_sharding)))
            mask, first = local["mask"], jax.process_index() * len(local["mask"])
            logits = output["logits"][first : first + len(mask)]
            images.append(local["image"][mask])
            labels.append(local["label"][mask])
            probabilities.append(np.asarray(jax.nn.softmax(logits[mask], axis=-1)))
            if len(images) * setup.eval_loader.batch_size >= PICTURED:
                break
    if jax.process_index() == 0:
        plot_predictions(
            np.concatenate(images),
            np.concatenate(labels),
            np.concatenate(probabilities),
            setup.eval_loader.source.class_names,
            path,
        )


def put_batch(batch: Mapping[str, np.ndarray], sharding: NamedSharding) -> dict[str, Array]:
    """The global batch that the processes' own parts make up, on the devices."""
    return {key: jax.make_array_from_process_local_data(sharding, value) for key, value in batch.items()}
