"""Orbax checkpoints of the training state: asynchronous, atomic, the last few and the best one kept."""

import contextlib
import errno
import logging
import math
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp

from rmt_jax.convert import CHECKPOINT_ITEMS, checkpoint_folder, write_manifest
from rmt_jax.training.config import CheckpointConfig
from rmt_jax.training.disk import checkpoint_size, describe_stop, free_space, reason_of
from rmt_jax.training.recovery import interrupted_saves
from rmt_jax.training.state import State, Tree

# Where a save fails, Orbax logs a traceback for every array beside the error that it raises.
_TALKATIVE = ("absl", "asyncio")

# Orbax has each replica of an array write a part of it, for which every device compiles a program for every shape.
# Below this many bytes a part one replica writes it all.
_SHARED_OUT = 2**20


class SaveError(RuntimeError):
    """A checkpoint could not be saved; those before it are as they were."""


class Checkpoints:
    """The folder `checkpoints` of a workdir. Each step holds the items model, ema and optimizer, readable alone.

    A save runs in the background while training goes on, and appears under its name only when complete, with a
    manifest of its files (see `find_damage`). Where it fails, the next save or `close` says so.

    scores: {step: what is to be high} of the evaluations so far, to be kept up by `add_score`.
    """

    def __init__(self, workdir: pathlib.Path, config: CheckpointConfig, scores: Mapping[int, float] | None = None):
        self._workdir = workdir
        self._policy = _LastAndBest(config.keep_last, scores or {})
        self._under_way: tuple[int, int] | None = None  # step and size of the save that may still run
        self._failed = False
        for name in _TALKATIVE:
            logging.getLogger(name).addFilter(_without_errors)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._policy,
            async_options=ocp.options.AsyncOptions(post_finalization_callback=self._write_manifest),
        )
        self.folder = checkpoint_folder(workdir)
        handlers = {name: _array_handler() for name in CHECKPOINT_ITEMS}
        self._manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)

    @property
    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint, None without any."""
        return self._manager.latest_step()

    def add_score(self, step: int, score: float) -> None:
        """Take in the evaluation of a step, which has been saved or not."""
        self._policy.scores[step] = score

    def save(self, step: int, state: State) -> None:
        """Start to save; returns once the arrays are copied off the devices. A step that is saved already is left.

        Raises:
            SaveError: this save could not start, or the one before it failed.
        """
        if step in self._manager.all_steps():
            return
        items = {name: ocp.args.PyTreeSave(item) for name, item in _items(state).items()}
        with self._explained():
            self._manager.wait_until_finished()
            self._under_way = step, checkpoint_size(state)
            if jax.process_index() == 0:
                self._check_disk(self._under_way[1])
            self._manager.save(step, args=ocp.args.Composite(**items))

    def restore(self, step: int, abstract: State) -> State:
        """The state of a step, in the shapes, types and shardings of `abstract`."""
        items = {
            name: ocp.args.PyTreeRestore(item, restore_args=ocp.checkpoint_utils.construct_restore_args(item))
            for name, item in _items(abstract).items()
        }
        restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        return restored["model"] | {"ema": restored["ema"]} | restored["optimizer"]

    def close(self) -> None:
        """Wait for the save under way.

        Raises:
            SaveError: it failed.
        """
        if self._failed:  # said already: Orbax would say it again
            with contextlib.suppress(Exception):
                self._manager.close()
            return
        with self._explained():
            self._manager.close()

    def _check_disk(self, size: int) -> None:
        """Before Orbax finds out: in the middle of a save it does so with much noise, or waits for minutes."""
        with tempfile.TemporaryFile(dir=self.folder):  # as may be written, and leaves nothing
            pass
        free = free_space(self.folder)
        if free is not None and free < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever the layers below raise
            self._failed = True
            step, size = self._under_way or (0, None)
            if jax.process_index() == 0:
                for folder in interrupted_saves(self._workdir):
                    shutil.rmtree(folder, ignore_errors=True)
            what = f"The checkpoint of step {step} could not be saved in {self.folder}"
            raise SaveError(describe_stop(self._workdir, what, reason_of(error), size)) from error

    def _write_manifest(self) -> None:
        """Called by Orbax's thread when all is written, before it is committed."""
        if jax.process_index() == 0 and self._under_way is not None:
            step = self._under_way[0]
            write_manifest(next(self.folder.glob(f"{step}{ocp.utils.TMP_DIR_SUFFIX}*"), self.folder / str(step)))


def _without_errors(record: logging.LogRecord) -> bool:
    return record.exc_info is None


class _LastAndBest:
    """Which checkpoints stay. Only of the scores that this run knows: at a save its own score is not known yet."""

    def __init__(self, keep_last: int, scores: Mapping[int, float]):
        self.keep_last, self.scores = keep_last, dict(scores)

    def should_preserve(
        self,
        checkpoints: Sequence[Any],  # with `step`
        *,
        context: ocp.checkpoint_managers.PreservationContext,
    ) -> list[bool]:
        """For each checkpoint, in the order of steps."""
        steps = [info.step for info in checkpoints]
        kept = set(steps[-self.keep_last :])
        scored = [(self.scores[step], step) for step in steps if math.isfinite(self.scores.get(step, math.nan))]
        if scored:
            kept.add(max(scored)[1])  # of equal ones the latest
        return [step in kept for step in steps]


def _array_handler() -> ocp.PyTreeCheckpointHandler:
    arrays = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=_SHARED_OUT)
    registry = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays))
    return ocp.PyTreeCheckpointHandler(type_handler_registry=registry)


def _items(state: State) -> dict[str, Tree]:
    return {
        "model": {"params": state["params"], "batch_stats": state["batch_stats"]},
        "ema": state["ema"],
        "optimizer": {"opt_state": state["opt_state"], "step": state["step"]},
    }
