"""What a checkpoint of a run holds, read without the devices that saved it."""

import pathlib
from collections.abc import Sequence

import jax
import numpy as np
import orbax.checkpoint as ocp


def saved_arrays(
    workdir: pathlib.Path, step: int, items: Sequence[str] = ("model", "ema", "optimizer")
) -> dict[str, np.ndarray]:
    """{item/path: array} of a step."""
    arrays: dict[str, np.ndarray] = {}
    handler = ocp.PyTreeCheckpointHandler()
    for item in items:
        folder = workdir.resolve() / "checkpoints" / str(step) / item
        whole = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), handler.metadata(folder).tree)
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            tree = checkpointer.restore(folder, args=ocp.args.PyTreeRestore(restore_args=whole))
        for path, leaf in jax.tree.leaves_with_path(tree):
            arrays[f"{item}/{jax.tree_util.keystr(path, simple=True, separator='/')}"] = np.asarray(leaf)
    return arrays
