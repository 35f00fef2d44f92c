"""`rmt data`: data sets that need preparation."""

import argparse
import contextlib
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from rmt_jax.data.imagenet import HOW_TO_DOWNLOAD
from rmt_jax.data.imagenet_shards import Progress
from rmt_jax.data.imagenet_writer import SPLITS, prepare_imagenet

DESCRIPTION = f"""\
Writes the TFDS data set imagenet2012 in array_record from ImageNet's two tars, without TensorFlow:
  {HOW_TO_DOWNLOAD}.

  rmt data imagenet --tars ~/downloads                      into TFDS's default directory
  rmt data imagenet --tars ~/downloads --only validation    6.3 GB, enough to evaluate
  python main.py --config configs/rmt_s.py                  reads it

Interrupted, the same command goes on. Tars with fewer classes or pictures are taken as they are.
"""

_SECONDS_BETWEEN_LINES = 30


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    parser = commands.add_parser("data", help="prepare data sets")
    sets = parser.add_subparsers(title="data sets", required=True)
    imagenet = sets.add_parser(
        "imagenet",
        help="ImageNet-1k from its two tars",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    imagenet.add_argument("--tars", required=True, metavar="DIR", help="the folder with the tars")
    imagenet.add_argument("--data-dir", metavar="DIR", help="TFDS data directory (default: TFDS's own)")
    imagenet.add_argument("--only", choices=tuple(SPLITS), help="prepare only this split (default: both)")
    imagenet.set_defaults(run=_run_imagenet)


def _run_imagenet(options: argparse.Namespace) -> int:
    splits = tuple(SPLITS) if options.only is None else (options.only,)
    with _terminal_progress(Console()) as progress:
        prepare_imagenet(options.tars, options.data_dir, splits=splits, progress=progress)
    return 0


@contextlib.contextmanager
def _terminal_progress(console: Console) -> Iterator[Progress]:
    """A bar on a terminal, a line now and then elsewhere."""
    if not console.is_terminal:
        yield _Lines(console)
        return
    columns = (TextColumn("writing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=console) as bar:
        yield _Bar(console, bar)


class _Lines(Progress):
    """Lines on a console."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last = float("-inf")

    def say(self, line: str) -> None:
        self._console.print(line, soft_wrap=True, markup=False, highlight=False)

    def advance(self, done: int, total: int) -> None:
        if done == total or time.monotonic() - self._last > _SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            self.say(f"{done:,} of {total:,} pictures written")


class _Bar(_Lines):
    """A progress bar below the lines."""

    def __init__(self, console: Console, bar: Bar) -> None:
        super().__init__(console)
        self._bar = bar
        self._task: TaskID | None = None

    def advance(self, done: int, total: int) -> None:
        if self._task is None:
            self._task = self._bar.add_task("", total=total)
        self._bar.update(self._task, completed=done)
