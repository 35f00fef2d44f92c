"""Where this process stands, where the others stand, and what to say when nothing moves any more."""

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping

# Phases whose length says nothing: a large program may take many minutes to compile.
STARTING, COMPILING, FAILED, ENDED = "starting", "compiling", "failed", "at the end"
_UNTIMED = (STARTING, COMPILING, FAILED, ENDED)
_LISTED = 8


class Status:
    """What this process is doing, since when, and when it last got something done."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._phase, self._since, self._progressed = STARTING, clock(), clock()

    def enter(self, phase: str) -> None:
        """From now on it does this."""
        if self._phase in _UNTIMED:  # the start and compilation do not count
            self._progressed = self._clock()
        self._phase, self._since = phase, self._clock()

    def progressed(self) -> None:
        """A step is finished, or a batch evaluated."""
        self._progressed = self._clock()

    @contextlib.contextmanager
    def doing(self, phase: str) -> Iterator[None]:
        """It does this inside, and then what it did before."""
        before = self._phase
        self.enter(phase)
        try:
            yield
        finally:
            self.enter(before)
            self.progressed()

    def stand(self) -> "Stand":
        """As the other processes are told."""
        now = self._clock()
        return Stand(self._phase, now - self._since, now - self._progressed)


@dataclasses.dataclass(frozen=True)
class Stand:
    """Where a process stands.

    Attributes:
        phase: what it does.
        seconds: since it began that.
        idle: seconds since it last got something done.
        silence: seconds since it was heard of.
    """

    phase: str
    seconds: float
    idle: float
    silence: float = 0.0

    def to_json(self) -> str:
        """For the others."""
        return json.dumps([self.phase, round(self.seconds, 3), round(self.idle, 3)])

    @classmethod
    def from_json(cls, text: str, silence: float) -> "Stand":
        """What `to_json` gave, heard so many seconds ago."""
        phase, seconds, idle = json.loads(text)
        return cls(phase, seconds + silence, idle + silence, silence)

    @property
    def timed(self) -> bool:
        """Whether it is in the middle of work that should move on."""
        return self.phase not in _UNTIMED

    def __str__(self) -> str:
        if self.silence > 5:
            return f"not heard of for {self.silence:.0f} s, then {self.phase}"
        return f"{self.phase} for {self.seconds:.0f} s"


class Watchdog:
    """Speaks up when no step is finished for `seconds`, and again after twice the time, four times, ..."""

    def __init__(self, seconds: float) -> None:
        self._seconds = self._next = seconds

    def check(self, stands: Mapping[str, Stand]) -> str | None:
        """What to say now, if anything. stands: by the name of the process."""
        idle = min(stand.idle for stand in stands.values())
        if idle < self._seconds:
            self._next = self._seconds
        if idle < self._next or not any(stand.timed for stand in stands.values()):
            return None
        self._next *= 2
        return f"no step finished for {idle:.0f} s: {describe_stands(stands)}"


def describe_stands(stands: Mapping[str, Stand]) -> str:
    """Each process and what it does; of very many those that are unlike the others."""
    phases = [stand.phase for stand in stands.values()]
    unlike_first = sorted(stands, key=lambda name: (phases.count(stands[name].phase), -stands[name].silence))
    chosen = set(unlike_first[:_LISTED])
    listed = [f"{name} {stand}" for name, stand in stands.items() if name in chosen]
    return "; ".join(listed) + (f"; and {len(stands) - _LISTED} others" if len(stands) > _LISTED else "")
