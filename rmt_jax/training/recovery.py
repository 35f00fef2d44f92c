"""Which checkpoint a run goes on from: the newest whole one. Damaged newer ones are named and moved aside."""

import pathlib
import shutil
from collections.abc import Mapping

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from rmt_jax.convert import checkpoint_folder, checkpoint_steps, find_damage
from rmt_jax.training.report import log

DAMAGED_FOLDER = "damaged"

_NONE_WHOLE = -1


def recover(workdir: pathlib.Path) -> int:
    """The step to go on from, 0 where there is no checkpoint; the same for all processes.

    The first process looks, moves what is damaged to workdir/damaged and removes what an interrupted save left, which
    nobody else may be writing (see `WorkdirLock`).

    Raises:
        ValueError: there are checkpoints, and none is whole. Nothing is moved then.
    """
    step, damage = _newest_whole(workdir) if jax.process_index() == 0 else (0, {})
    if jax.process_count() > 1:
        step = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
    if step == _NONE_WHOLE:
        listed = "".join(f"\n  Checkpoint {number} is damaged ({problem})." for number, problem in damage.items())
        raise ValueError(
            f"No checkpoint in {workdir} is whole, and a run is never started again over another:{listed}\n"
            f"Put back the files from a copy, or start again with another --workdir."
        )
    if jax.process_index() == 0:
        _clear(workdir, step, damage)
    return step


def _newest_whole(workdir: pathlib.Path) -> tuple[int, dict[int, str]]:
    """(the step, or _NONE_WHOLE, or 0 without any; what is wrong with each newer one)."""
    damage: dict[int, str] = {}
    for step in sorted(checkpoint_steps(workdir), reverse=True):
        problem = find_damage(checkpoint_folder(workdir) / str(step))
        if problem is None:
            return step, damage
        damage[step] = problem
    return (_NONE_WHOLE if damage else 0), damage


def _clear(workdir: pathlib.Path, step: int, damage: Mapping[int, str]) -> None:
    going_on = f"going on from {step}" if step else "there is no checkpoint yet"
    for number, problem in damage.items():
        target = _move_aside(workdir, number)
        where = target.relative_to(workdir)
        log(f"Checkpoint {number} is damaged ({problem}): {going_on}. The damaged one is now in {where}.")
    for folder in interrupted_saves(workdir):
        log(f"The save of step {folder.name.partition('.')[0]} was interrupted ({folder.name}, removed): {going_on}.")
        shutil.rmtree(folder)


def _move_aside(workdir: pathlib.Path, step: int) -> pathlib.Path:
    (workdir / DAMAGED_FOLDER).mkdir(exist_ok=True)
    names = (f"{step}" + (f"-{attempt}" if attempt else "") for attempt in range(1000))
    target = next(path for name in names if not (path := workdir / DAMAGED_FOLDER / name).exists())
    (checkpoint_folder(workdir) / str(step)).rename(target)
    return target


def interrupted_saves(workdir: pathlib.Path) -> list[pathlib.Path]:
    """What Orbax has not committed: it writes under another name, and renames."""
    return sorted(checkpoint_folder(workdir).glob(f"[0-9]*{ocp.utils.TMP_DIR_SUFFIX}*"))
