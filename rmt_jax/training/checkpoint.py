"""Orbax checkpoints of the training state: asynchronous, atomic, the last few and the best one kept."""

import math
import pathlib
from collections.abc import Mapping
from typing import Any

import orbax.checkpoint as ocp
from flax import nnx

from rmt_jax.convert import flat_paths, model_arrays
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


def checkpoint_folder(workdir: pathlib.Path) -> pathlib.Path:
    """Where a workdir keeps its checkpoints, absolute as Orbax wants it."""
    return workdir.resolve() / "checkpoints"


def has_checkpoint(workdir: pathlib.Path) -> bool:
    """Whether a workdir holds a complete checkpoint; creates nothing."""
    folder = checkpoint_folder(workdir)
    return folder.is_dir() and bool(ocp.utils.checkpoint_steps(folder))


def load_weights(model: nnx.Module, workdir: pathlib.Path) -> list[str]:
    """Fill a model with the moving average of a workdir's latest checkpoint, in place; returns what did not fit.

    Parameters of another shape, or that the checkpoint lacks, keep their values when they belong to the head; anything
    else that does not fit is an error.

    Raises:
        ValueError: no checkpoint there, or the backbone does not fit.
    """
    if not has_checkpoint(workdir):
        raise ValueError(f"init_from={str(workdir)!r} holds no checkpoint: give the workdir of an earlier run.")
    with ocp.CheckpointManager(checkpoint_folder(workdir), item_names=("ema",)) as manager:
        step = manager.latest_step()
        saved = manager.restore(step, args=ocp.args.Composite(ema=ocp.args.StandardRestore()))["ema"]
    arrays = {path: leaf for part in saved.values() for path, leaf in flat_paths(part)}
    tree = model_arrays(model)
    unfit = [path for path, leaf in flat_paths(tree) if path not in arrays or arrays[path].shape != leaf.shape]
    backbone = [path for path in unfit if path.startswith("backbone/")]
    if backbone:
        raise ValueError(
            f"init_from={str(workdir)!r} is of another model: {len(backbone)} backbone parameters do not fit, such as "
            f"{backbone[0]}."
        )
    taken = {path: arrays[path] for path, _ in flat_paths(tree) if path not in unfit}
    nnx.update(model, _nest(taken))
    return unfit


def _nest(flat: Mapping[str, Any]) -> dict[Any, Any]:
    """{"a/0/b": x} -> {"a": {0: {"b": x}}}"""
    tree: dict[Any, Any] = {}
    for path, leaf in flat.items():
        *parents, last = (int(key) if key.isdigit() else key for key in path.split("/"))
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = leaf
    return tree


def _items(state: State) -> dict[str, Tree]:
    return {
        "model": {"params": state["params"], "batch_stats": state["batch_stats"]},
        "ema": state["ema"],
        "optimizer": {"opt_state": state["opt_state"], "step": state["step"]},
    }
