"""What a run ran on and with: versions, devices, git revision, command line. Kept in workdir/environment.json."""

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import shlex
import subprocess
import sys
from typing import Any

import jax

from rmt_jax.training.metrics import replace_file
from rmt_jax.version import __version__

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "numpy")
_VARIABLE_PREFIXES = ("JAX_", "XLA_", "LIBTPU_INIT_ARGS")


def describe_environment() -> dict[str, Any]:
    """All that may explain why two runs differ, ready for JSON.

    To be called once jax.distributed is initialised, since it lists the devices. start_time: UTC, ISO 8601. git: None
    where the package does not run from a git checkout.
    """
    devices = jax.devices()
    return {
        "start_time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command_line": shlex.join(sys.orig_argv),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "rmt_jax": __version__,
        "git": _git_state(pathlib.Path(__file__).parent),
        "packages": {name: _version(name) for name in _PACKAGES},
        "devices": {
            "platform": devices[0].platform,
            "kind": devices[0].device_kind,
            "count": len(devices),
            "processes": jax.process_count(),
        },
        "variables": {name: os.environ[name] for name in sorted(os.environ) if name.startswith(_VARIABLE_PREFIXES)},
    }


def package_versions() -> dict[str, str | None]:
    """Versions that must be the same on all hosts of a run."""
    return {"python": platform.python_version(), "rmt_jax": __version__} | {name: _version(name) for name in _PACKAGES}


def write_environment(workdir: pathlib.Path) -> None:
    """Adds this start to {"starts": [...]} in workdir/environment.json: the first start first, then each resumption.

    Raises ValueError where that file holds something else.
    """
    path = workdir / "environment.json"
    starts = _read_starts(path) if path.exists() else []
    workdir.mkdir(parents=True, exist_ok=True)
    replace_file(path, (json.dumps({"starts": [*starts, describe_environment()]}, indent=2) + "\n").encode())


def _read_starts(path: pathlib.Path) -> list[Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError:
        content = None
    if not isinstance(content, dict) or not isinstance(content.get("starts"), list):
        raise ValueError(
            f'{path}: expected {{"starts": [...]}}, one entry for each start of the run. Move the file away.'
        )
    return content["starts"]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_state(folder: pathlib.Path) -> dict[str, Any] | None:
    # An installed package may lie inside somebody else's checkout (project/.venv/...): only files tracked there count.
    if not _git(folder, "ls-files", "."):
        return None
    revision = _git(folder, "rev-parse", "HEAD")
    if not revision:
        return None
    # Untracked files are mostly results, work directories: they would mark every run as changed.
    return {"revision": revision, "dirty": _git(folder, "status", "--porcelain", "--untracked-files=no") != ""}


def _git(folder: pathlib.Path, *arguments: str) -> str | None:
    """The output of a git command; None without git, outside a repository, or where git does not answer."""
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
