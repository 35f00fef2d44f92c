"""Space for checkpoints, and what to say when a disk takes no more."""

import errno
import pathlib
import shutil

import jax
import numpy as np

from rmt_jax.convert import checkpoint_folder, checkpoint_steps
from rmt_jax.training.config import CheckpointConfig
from rmt_jax.training.state import State

# What a write fails with where nothing is wrong with this program: a full disk, a quota, a disk mounted read-only.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)

# Bytes that Orbax writes for an array beside its values: shapes, shardings, the index. Measured on CPU.
BYTES_AN_ARRAY = 1500


def checkpoint_size(state: State) -> int:
    """About the bytes that a checkpoint of a state takes; rather too many, since Orbax compresses."""
    leaves = jax.tree.leaves(state)
    return sum(leaf.size * np.dtype(leaf.dtype).itemsize + BYTES_AN_ARRAY for leaf in leaves)


def check_space(workdir: pathlib.Path, config: CheckpointConfig, size: int) -> None:
    """See before a long run that its checkpoints will fit: the last few, the best one and one under way.

    Args:
        workdir: need not exist.
        config: how many are kept.
        size: bytes of one.

    Raises:
        ValueError: they do not fit.
    """
    folder = checkpoint_folder(workdir)
    held = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0
    free, count = free_space(workdir), config.keep_last + 2
    if free is not None and free + held < count * size:
        raise ValueError(
            f"The disk of {workdir} has {describe_size(free)} free, and this run needs {describe_size(count * size)}: "
            f"up to {count} checkpoints of about {describe_size(size)}"
            + (f", of which {describe_size(held)} are there" if held else "")
            + ". Free some space, or use another --workdir"
            + (" or --config.checkpoint.keep_last=1." if config.keep_last > 1 else ".")
        )


def free_space(path: pathlib.Path) -> int | None:
    """Bytes free where a path is or would be; None where the file system does not say."""
    path = path.resolve()
    while not path.exists():
        path = path.parent
    usage = shutil.disk_usage(path)
    return usage.free if usage.total else None


def describe_size(size: float | int, *, memory: bool = False) -> str:
    """Bytes in words, such as 1.5 GB of a disk; memory: in powers of two as its makers count, such as 15.75 GiB."""
    if memory:
        return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} bytes"


def describe_stop(workdir: pathlib.Path, what: str, reason: str, size: int | None = None) -> str:
    """The message of a run that a disk stopped: what failed and why, the space there, from where it can go on.

    size: bytes that were to be written, where known.
    """
    free = free_space(workdir)
    space = f" {describe_size(free)} are free there" if free is not None else ""
    if space and size is not None:
        space += f", about {describe_size(size)} are needed"
    steps = checkpoint_steps(workdir)
    last = f"The last checkpoint is that of step {max(steps)}" if steps else "No checkpoint was saved before"
    return f"{what}: {reason}.{space}{'.' if space else ''} {last}: once that is mended, the same command goes on."


def reason_of(error: BaseException) -> str:
    """Why a write failed, in a few words."""
    text = str(error)
    for number, words in (
        (errno.ENOSPC, "no space left on the disk"),
        (errno.EDQUOT, "the quota is used up"),
        (errno.EROFS, "the disk can only be read"),
        (errno.EACCES, "permission denied"),
    ):
        # tensorstore's errors are no OSErrors, but name the system's.
        if getattr(error, "errno", None) == number or errno.errorcode[number] in text:
            return words
    return (text.splitlines() or [type(error).__name__])[0]
