"""What commands share about what they print and write: results, messages, progress, and where figures come from."""

import argparse
import contextlib
import importlib.metadata
import json
import pathlib
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import rich.console

from rmt_jax.version import __version__

SECONDS_BETWEEN_LINES = 30.0  # about the progress, where there is no terminal


class Console(rich.console.Console):
    """rich's, which says that nobody reads any more as print does."""

    def on_broken_pipe(self) -> NoReturn:
        """Instead of ending here with an exit code of its own."""
        raise BrokenPipeError


class Destination:
    """Where the results of --json or --csv go: a file, or "-" for standard output, which then holds nothing else."""

    def __init__(self, word: str) -> None:
        self.stream = sys.stdout if word == "-" else None
        self._path = pathlib.Path(word)

    def check(self, option: str) -> None:
        """Raise ValueError where a file cannot be written there."""
        if self.stream is None:
            check_output(self._path, option)

    def write(self, text: str) -> None:
        """Write it; a file whole or not at all."""
        from rmt_jax.training.metrics import replace_file

        if self.stream is not None:
            self.stream.write(text)
        else:
            replace_file(self._path, text.encode())


def add_json(parser: argparse.ArgumentParser, what: str) -> None:
    """Add --json, for `write_json`."""
    parser.add_argument("--json", type=Destination, metavar="FILE", help=f"write {what} as JSON; - to standard output")


def write_json(destination: Destination | None, content: Any) -> None:
    """Write what --json asks for, if anything."""
    if destination is not None:
        destination.write(json.dumps(content, indent=2, default=str) + "\n")


def add_quiet(parser: argparse.ArgumentParser) -> None:
    """Add --quiet, for `counting`."""
    parser.add_argument("--quiet", action="store_true", help="no progress")


def check_output(path: pathlib.Path | None, option: str) -> None:
    """Raise ValueError where a file cannot be written there; None is fine."""
    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        raise ValueError(f"{option}={path}: give the name of a file in a directory that exists.")


def say(line: str, *, stderr: bool = False) -> None:
    """Print a line: a result, or to standard error a message. Above the bar of `counting`, where there is one."""
    print(line, file=sys.stderr if stderr else sys.stdout)


@contextlib.contextmanager
def counting(what: str, total: int, *, quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """Yields what to call with the number just done: a bar on a terminal, now and then a line elsewhere."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, quiet=quiet)
    if console.is_terminal and not quiet:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        # Results that go to a file or a pipe are not the bar's to print.
        with Progress(*columns, console=console, redirect_stdout=sys.stdout.isatty()) as bar:
            task = bar.add_task(what, total=total)
            yield lambda count: bar.advance(task, count)
        return
    done, printed = 0, time.monotonic()

    def advance(count: int) -> None:
        nonlocal done, printed
        done += count
        if time.monotonic() - printed >= SECONDS_BETWEEN_LINES:
            printed = time.monotonic()
            console.print(f"{what}: {done:,} of {total:,}", highlight=False)

    yield advance


def format_size(size: float | int) -> str:
    """Bytes of memory in words."""
    from rmt_jax.training.disk import describe_size

    return describe_size(size, memory=True)


def describe_environment(packages: Sequence[str]) -> dict[str, Any]:
    """Processor, cores and versions, for the JSON of a measurement."""
    from rmt_jax.data.benchmark import cores

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
