"""The folder of a run: checked before work starts, so that no two different runs share one."""

import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from rmt_jax.training.config import Config, to_dict
from rmt_jax.training.metrics import replace_file

# Keys that change no number, so that a resumed run may have others.
FREE_KEYS = (
    "data.dir",
    "data.num_workers",
    "data.num_threads",
    "data.prefetch",
    "mesh.data",
    "mesh.fsdp",
    "model.remat",
    "model.scan",
    "log_every_steps",
    "max_skipped_steps",
    "watchdog_seconds",
    "checkpoint.every_steps",
    "checkpoint.keep_last",
)


def open_workdir(workdir: pathlib.Path, config: Config, *, write: bool) -> None:
    """Create the folder and write config.json, or check the one that is there.

    Args:
        workdir: the folder of the run.
        config: of the run that is about to start.
        write: False only checks (other processes, evaluation).

    Raises:
        ValueError: it cannot be written, or it holds a run of another configuration (the differences are listed).
    """
    path = workdir / "config.json"
    new = json.loads(json.dumps(to_dict(config)))  # as it will be read back: tuples become lists
    if path.exists():
        try:
            old = json.loads(path.read_text())
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is damaged ({error}): mend it, or use another --workdir.") from error
        differences = list(_differences(old, new))
        if differences:
            raise ValueError(
                f"The workdir {workdir} holds a run of another configuration:\n  "
                + "\n  ".join(differences)
                + "\nUse another --workdir, or the same configuration to resume that run."
            )
    if not write:
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        replace_file(path, (json.dumps(new, indent=2) + "\n").encode())
    except OSError as error:
        raise ValueError(
            f"The workdir {workdir} cannot be written: {error.strerror}. Choose another with --workdir."
        ) from error


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key in dict.fromkeys([*old, *new]):
        name, before, after = f"{prefix}{key}", old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from _differences(before, after, f"{name}.")
        elif before != after and name not in FREE_KEYS:
            yield f"{name}: {before!r} there, {after!r} now"
