"""Orbax checkpoints of the training state: asynchronous, atomic, the last few and the best one kept."""

import math
import pathlib
from collections.abc import Mapping

import orbax.checkpoint as ocp

from rmt_jax.convert import checkpoint_folder
from rmt_jax.training.config import CheckpointConfig
from rmt_jax.training.state import State, Tree

BEST_METRIC = "val_ema/top1"


class Checkpoints:
    """The folder `checkpoints` of a workdir. Each step holds the items model, ema and optimizer, readable alone.

    A save runs in the background while training goes on, and appears under its name only when complete.
    """

    def __init__(self, workdir: pathlib.Path, config: CheckpointConfig):
        policies = ocp.checkpoint_managers
        best = policies.BestN(get_metric_fn=_best_metric, n=1)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(config.keep_last), best]),
            best_fn=_best_metric,  # only so that metrics are written: the policy decides what is kept
        )
        self.folder = checkpoint_folder(workdir)
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    @property
    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint, None without any."""
        return self._manager.latest_step()

    def save(self, step: int, state: State, metrics: Mapping[str, float] | None) -> None:
        """Start to save; returns once the arrays are copied off the devices. A step that is saved already is left."""
        if step in self._manager.all_steps():
            return
        items = {name: ocp.args.StandardSave(item) for name, item in _items(state).items()}
        # Without an evaluation the metrics are empty and not None, of which Orbax would warn at every save.
        self._manager.save(step, args=ocp.args.Composite(**items), metrics=dict(metrics or {}))

    def restore(self, step: int, abstract: State) -> State:
        """The state of a step, in the shapes, types and shardings of `abstract`."""
        items = {name: ocp.args.StandardRestore(item) for name, item in _items(abstract).items()}
        restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        return restored["model"] | {"ema": restored["ema"]} | restored["optimizer"]

    def close(self) -> None:
        """Wait for the saves under way."""
        self._manager.wait_until_finished()
        self._manager.close()


def _best_metric(metrics: Mapping[str, float]) -> float:
    return metrics.get(BEST_METRIC, -math.inf)


def _items(state: State) -> dict[str, Tree]:
    return {
        "model": {"params": state["params"], "batch_stats": state["batch_stats"]},
        "ema": state["ema"],
        "optimizer": {"opt_state": state["opt_state"], "step": state["step"]},
    }
