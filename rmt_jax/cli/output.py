"""What the measuring commands share: files to write to, and where figures come from."""

import importlib.metadata
import pathlib
import platform
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from rmt_jax.data.benchmark import cores
from rmt_jax.version import __version__


def check_output(path: pathlib.Path | None, option: str) -> None:
    """Raise ValueError where a file cannot be written there; None is fine."""
    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        raise ValueError(f"{option}={path}: give the name of a file in a directory that exists.")


def say(line: str) -> None:
    """Print a line as it is, however long."""
    Console().print(line, highlight=False, markup=False, soft_wrap=True)


def format_size(size: float | int) -> str:
    """Bytes of memory in words."""
    from rmt_jax.training.disk import describe_size

    return describe_size(size, memory=True)


def describe_environment(packages: Sequence[str]) -> dict[str, Any]:
    """Processor, cores and versions, for the JSON of a measurement."""
    return {
        "cpu": cpu_model(),
        "cores": cores(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "rmt_jax": __version__,
        "packages": {name: importlib.metadata.version(name) for name in packages},
    }


def cpu_model() -> str:
    """The processor's name."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    found = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return found[0] if found else platform.processor() or platform.machine()
