"""Stopping a run politely: the first signal asks, the second one insists."""

import signal
from types import FrameType

from rmt_jax.training.report import log

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """While active, Ctrl-C or SIGTERM only sets `signal`; another one acts as it does without this class.

    The loop looks at it between steps, so that what it saves is whole.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._previous: dict[int, signal.Handlers | int | None] = {}

    def __enter__(self) -> "StopRequest":
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)  # type: ignore[assignment]
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()

    def __bool__(self) -> bool:
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """What a shell reports for a process that this signal ended: 130 after Ctrl-C, 143 after SIGTERM."""
        return 0 if self.signal is None else 128 + self.signal

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self._restore()
        log("Stopping after this step and saving. Once more to stop at once.")

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
