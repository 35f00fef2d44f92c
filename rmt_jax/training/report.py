"""What a person sees while training: a summary first, then the progress, a table of results at the end.

Everything prints through a `rich.console.Console`; of several processes only the first is heard.
"""

import contextlib
import datetime
import functools
import math
import pathlib
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, SupportsFloat

import jax
from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rmt_jax.training.watchdog import COMPILING, Status

# Long enough to average over several synchronisations with the device, short enough to follow a change.
WINDOW_SECONDS = 30.0

WORKDIR_FILES = {
    "config.json": "the configuration of this run",
    "environment.json": "versions, devices, git revision",
    "checkpoints": "to resume, evaluate or fine-tune from",
    "metrics.jsonl": "every number logged, one JSON object a line",
    "tensorboard": "the same for TensorBoard",
    "curves.png": "loss, learning rate, accuracy, speed",
    "predictions.png": "test pictures, the mistakes first",
    "overlays": "what is predicted, in colours over pictures",
    "evaluation.json": "the last evaluation: accuracy, and that of each class",
    "confusion.png": "which classes are taken for which",
    "confusion.npz": "the same in numbers, for rmt plot confusion",
}
EVALUATION_FILES = {
    name: WORKDIR_FILES[name]
    for name in ("evaluation.json", "confusion.png", "confusion.npz", "predictions.png", "overlays")
}

_HEADINGS = {
    "top1": "top-1 (%)",
    "top5": "top-5 (%)",
    "mIoU": "mIoU (%)",
    "aAcc": "pixels right (%)",
    "mAcc": "mean of the classes (%)",
    "box_AP": "box AP (%)",
    "box_AP50": "AP50",
    "box_AP75": "AP75",
    "mask_AP": "mask AP (%)",
    "mask_AP50": "mask AP50",
}
_DECIMALS = {"epoch": 0, "loss": 4}


def print_summary(title: str, rows: Mapping[str, str], *, console: Console | None = None) -> None:
    """Prints what is about to be trained, one `name  value` row each; long values wrap inside their column."""
    table = Table(title=Text(title, style="bold"), title_justify="left", show_header=False, box=box.SIMPLE)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(Text(name), Text(value))
    (console or _default_console()).print(table)


def print_results(
    rows: Mapping[str, Mapping[str, SupportsFloat]],
    *,
    seconds: float,
    workdir: pathlib.Path,
    files: Mapping[str, str] = WORKDIR_FILES,
    console: Console | None = None,
) -> None:
    """Prints the results and where everything lies.

    rows: one result a row, such as {"final": {"top1": 98.3, "loss": 0.08, "epoch": 60}, "best, EMA": ...}; top1 and
    top5 in percent. seconds: time of the whole run. files: name in the workdir -> what it is; absent ones are left out.
    """
    console = console or _default_console()
    keys = list(dict.fromkeys(key for row in rows.values() for key in row))  # each once, in order of appearance
    table = Table(title=Text("Results", style="bold"), title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("weights", style="cyan", no_wrap=True)
    for key in keys:
        table.add_column(_HEADINGS.get(key, key), justify="right")
    for name, row in rows.items():
        cells = [f"{float(row[key]):.{_DECIMALS.get(key, 2)}f}" if key in row else "" for key in keys]
        table.add_row(Text(name), *cells)
    console.print(table if rows else "No results: the model was not evaluated.")
    log(f"Took {format_duration(seconds)}. In {workdir}:", console=console)
    places = Table(show_header=False, box=box.SIMPLE, show_edge=False)
    for name, what in files.items():
        if (workdir / name).exists():
            places.add_row(Text(name, style="cyan"), Text(what))
    console.print(places)


def log(message: str, *, console: Console | None = None) -> None:
    """Prints one line, above the progress bar when there is one."""
    # soft_wrap: a log file should keep one message on one line, whatever width rich assumes for it.
    (console or _default_console()).print(message, markup=False, highlight=False, soft_wrap=True)


def log_from_here(message: str) -> None:
    """Prints one line that concerns this process alone: of the first as `log`, of others on stderr with their name."""
    if jax.process_index() == 0:
        log(message)
    else:
        name = f"host {socket.gethostname()} (process {jax.process_index()})"
        print(f"{name}: {message}", file=sys.stderr, flush=True)


def format_duration(seconds: float) -> str:
    """Seconds as m:ss, h:mm:ss or "2 days, h:mm:ss"."""
    return str(datetime.timedelta(seconds=round(seconds))).removeprefix("0:").removeprefix("0")


@functools.cache
def _default_console() -> Console:
    """Standard output; of several processes only the first is heard."""
    return Console(quiet=jax.process_index() != 0)


class _Mark(NamedTuple):
    """A moment at which the device was known to have finished `step`."""

    step: int
    training: float  # seconds of training so far, pauses left out
    waited: float  # seconds of those spent waiting for data


class Progress:
    """The progress of training: a live bar on a terminal, now and then a plain line anywhere else.

    JAX runs steps asynchronously, so only an update that carries a loss says what the device has really finished:
    speeds are taken between those, over about the last 30 seconds. Compilation (all before the first update) and
    pauses are left out of them. Nothing here waits for the device: pass Python floats when at hand, else None.

    batch_size: pictures a step over all devices. status: kept up to date. clock: seconds, never going backwards.
    """

    def __init__(
        self,
        total_steps: int,
        *,
        start_step: int,
        batch_size: int,
        steps_per_epoch: int,
        status: Status | None = None,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total_steps, self.step = total_steps, start_step
        self._batch_size, self._steps_per_epoch = batch_size, steps_per_epoch
        self._console, self._clock = console or _default_console(), clock
        self._status = status or Status()
        self._loss: float | None = None
        self._lr: float | None = None
        self._marks: deque[_Mark] = deque()
        self._start = clock()
        self._paused_seconds = self._waited_seconds = 0.0
        self._activity = "compiling" if start_step < total_steps else ""
        self._live: Live | None = None
        self._printed_at, self._printed_step = self._start, start_step

    def __enter__(self) -> "Progress":
        self._start = self._printed_at = self._clock()
        self._status.enter(COMPILING)
        if self._console.is_interactive and not self._console.quiet:
            self._live = Live(console=self._console, get_renderable=self._render, refresh_per_second=4)
            self._live.start()
        elif self._activity:
            log(f"{self._position()}: {self._activity}", console=self._console)
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()
        elif self.step != self._printed_step:
            self._print_line()

    def update(self, step: int, *, loss: float | None = None, lr: float | None = None) -> None:
        """To be called after each step, with the number of steps done; loss and lr only when they are at hand."""
        self.step = step
        self._loss = self._loss if loss is None else loss
        self._lr = self._lr if lr is None else lr
        self._activity = ""
        self._status.progressed()
        self._status.enter(f"in step {step + 1}")
        if not self._marks or loss is not None:
            self._marks.append(_Mark(step, self._training_seconds(), self._waited_seconds))
        while len(self._marks) > 2 and self._marks[-1].training - self._marks[1].training >= WINDOW_SECONDS:
            self._marks.popleft()
        if self._live is None and self._clock() - self._printed_at >= self._plain_interval():
            self._print_line()

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Counts the time inside as waiting for the next batch."""
        before = self._training_seconds()
        try:
            with self._status.doing("waiting for data"):
                yield
        finally:
            self._waited_seconds += self._training_seconds() - before

    @contextlib.contextmanager
    def paused(self, activity: str) -> Iterator[None]:
        """Leaves the time inside (evaluation, checkpoints) out of the speed; the bar shows the activity meanwhile."""
        before = self._training_seconds(), self._waited_seconds, self._activity
        self._activity = activity
        try:
            with self._status.doing(activity):
                yield
        finally:
            training, self._waited_seconds, self._activity = before
            self._paused_seconds = self._clock() - self._start - training

    @property
    def images_per_second(self) -> float | None:
        """Pictures trained on per second, recently; None before that is known."""
        window = self._window()
        return window.step * self._batch_size / window.training if window else None

    @property
    def data_wait_share(self) -> float | None:
        """Share of the recent training time spent waiting for data, 0 to 1; None before that is known."""
        window = self._window()
        return window.waited / window.training if window else None

    @property
    def seconds_left(self) -> float | None:
        """Seconds to the last step at the recent speed, evaluations to come not counted; None before that is known."""
        window = self._window()
        return (self.total_steps - self.step) * window.training / window.step if window else None

    def _window(self) -> _Mark | None:
        """Steps and seconds between the oldest and the newest mark; None where that gives no speed."""
        if not self._marks:
            return None
        oldest, newest = self._marks[0], self._marks[-1]
        span = _Mark(newest.step - oldest.step, newest.training - oldest.training, newest.waited - oldest.waited)
        return span if span.step > 0 and span.training > 0 else None

    def _training_seconds(self) -> float:
        return self._clock() - self._start - self._paused_seconds

    def _plain_interval(self) -> float:
        """Seconds between plain lines: 10 at first, 60 from the twentieth minute on, for a log that stays readable."""
        return min(60.0, max(10.0, (self._clock() - self._start) / 20))

    def _position(self) -> str:
        epochs = math.ceil(self.total_steps / self._steps_per_epoch)
        epoch = min(epochs, max(1, math.ceil(self.step / self._steps_per_epoch)))
        return f"epoch {epoch}/{epochs}, step {self.step}/{self.total_steps}"

    def _time(self) -> str:
        elapsed = format_duration(self._clock() - self._start)
        if self.step >= self.total_steps:
            return f"in {elapsed}"
        return f"{elapsed} so far" if self.seconds_left is None else f"{format_duration(self.seconds_left)} left"

    def _measures(self) -> list[str]:
        """What is known so far of loss, learning rate, speed and waiting."""
        speed, waiting = self.images_per_second, self.data_wait_share
        measures = {
            "{}": self._activity or None,
            "loss {:.4f}": self._loss,
            "lr {:.1e}": self._lr if self._live else None,  # a plain line has no room for it
            "{:.1f} images/s" if speed is not None and speed < 100 else "{:.0f} images/s": speed,
            "data wait {:.0%}": waiting,
        }
        return [text.format(value) for text, value in measures.items() if value is not None]

    def _print_line(self) -> None:
        self._printed_at, self._printed_step = self._clock(), self.step
        log(f"{self._position()}: {', '.join([*self._measures(), self._time()])}", console=self._console)

    def _render(self) -> Group:
        """The live view: a line with the bar, a line with the measures."""
        line = Table.grid(expand=True, padding=(0, 2, 0, 0))
        line.add_column(no_wrap=True)
        line.add_column(ratio=1)
        line.add_column(no_wrap=True)
        line.add_row(self._position(), ProgressBar(self.total_steps, self.step), self._time())
        return Group(line, Text("  ".join(self._measures()), style="dim"))
