"""Stopping a run politely: a signal or a notice asks, the same signal once more insists."""

import signal
import time
from types import FrameType

from rmt_jax.training.exit_codes import INTERRUPTED, PREEMPTED
from rmt_jax.training.report import log_from_here

# SIGUSR1 is what `sbatch --signal` is commonly told to send ahead of the end; SIGHUP comes when the terminal goes, and
# together with SIGTERM when a machine is shut down.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
_ONE_REQUEST = 3.0  # seconds within which a signal that comes again is the same request


class Stopped(Exception):
    """The processes have agreed to stop, in the middle of an evaluation."""


class StopRequest:
    """While active, Ctrl-C, SIGTERM, SIGUSR1 or SIGHUP only asks to stop; the same one again acts as it does otherwise.

    A machine that goes may send several kinds, and one of them twice, from the system and from a script around the run:
    only Ctrl-C insists at once, the others some seconds later. A SIGHUP that is ignored, as by `nohup`, stays ignored.

    What is asked here goes to the devices with every batch, and comes back from there as the one decision of all
    processes: so all of them stop after the same step, and what they save is whole.

    Attributes:
        signal: that came to this process.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._asked = False
        self._came: dict[int, float] = {}
        self._previous: dict[int, signal.Handlers | int | None] = {}

    def __enter__(self) -> "StopRequest":
        for number in SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._handle)  # type: ignore[assignment]
        return self

    def __exit__(self, *error: object) -> None:
        for number in list(self._previous):
            self._restore(number)

    def __bool__(self) -> bool:
        return self._asked

    @property
    def exit_code(self) -> int:
        """Of a run that was stopped and saved: 130 after Ctrl-C here, 143 after all else, here or elsewhere."""
        return INTERRUPTED if self.signal == signal.SIGINT else PREEMPTED

    def ask(self, reason: str) -> None:
        """Ask to stop; reason: for the log of this process."""
        self._asked = True
        log_from_here(f"{reason}: stopping after this step and saving")

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        first = self._came.setdefault(number, now)
        if first == now:
            self.signal = self.signal or number
            self.ask(f"{signal.Signals(number).name} (once more to stop at once)")
        elif number == signal.SIGINT or now - first > _ONE_REQUEST:
            self._restore(number)
            signal.raise_signal(number)

    def _restore(self, number: int) -> None:
        signal.signal(number, self._previous.pop(number))
