"""Stopping a run politely: the first signal or notice asks, the second signal insists."""

import signal
from types import FrameType

from rmt_jax.training.report import log_from_here

# SIGUSR1 is what `sbatch --signal` is commonly told to send ahead of the end.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Stopped(Exception):
    """The processes have agreed to stop, in the middle of an evaluation."""


class StopRequest:
    """While active, Ctrl-C, SIGTERM or SIGUSR1 only asks to stop; another one acts as it does without this class.

    What is asked here goes to the devices with every batch, and comes back from there as the one decision of all
    processes: so all of them stop after the same step, and what they save is whole.

    Attributes:
        signal: that came to this process.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._asked = False
        self._previous: dict[int, signal.Handlers | int | None] = {}

    def __enter__(self) -> "StopRequest":
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)  # type: ignore[assignment]
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()

    def __bool__(self) -> bool:
        return self._asked

    @property
    def exit_code(self) -> int:
        """Of a run that was stopped and saved: 130 after Ctrl-C here, 143 after all else, here or elsewhere."""
        return 130 if self.signal == signal.SIGINT else 143

    def ask(self, reason: str) -> None:
        """Ask to stop; reason: for the log of this process."""
        self._asked = True
        log_from_here(f"{reason}: stopping after this step and saving")

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self._restore()
        self.ask(f"{signal.Signals(number).name} (once more to stop at once)")

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
