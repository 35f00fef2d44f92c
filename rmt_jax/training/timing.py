"""Work timed in turn in one process, so that whatever else the machine does meets all of it alike."""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Work(NamedTuple):
    """Something to be timed, which may go on after the call that started it, as on an accelerator.

    Attributes:
        start: begins it once more, and returns what tells when it is done.
        wait: returns when all is done that was started, given a list of what `start` returned.
    """

    start: Callable[[], Any]
    wait: Callable[[list[Any]], object]

    def run(self) -> None:
        """Do it once, to the end."""
        self.wait([self.start()])


class Timing(NamedTuple):
    """Seconds, a number for each round.

    Attributes:
        rounds: of one time, when one follows the other without a wait, as in a training.
        latencies: of one time alone, until it is done.
    """

    rounds: tuple[float, ...]
    latencies: tuple[float, ...]

    @property
    def median(self) -> float:
        """Of the rounds."""
        return statistics.median(self.rounds)

    @property
    def latency(self) -> float:
        """The median of the latencies."""
        return statistics.median(self.latencies)


def time_in_turn(works: Mapping[str, Work], *, rounds: int, seconds: float = 1.0) -> dict[str, Timing]:
    """The time of each.

    All are done twice first; the second time says how often each fits into `seconds`, and so often it is started in
    a round before it is waited for. Where that is once, its latency is the same; elsewhere it is done once more alone.
    """
    times: dict[str, int] = {}
    for name, work in works.items():
        work.run()
        times[name] = max(1, math.floor(seconds / _time(work, 1)))
    found: dict[str, list[float]] = {name: [] for name in works}
    latencies: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            found[name].append(_time(work, times[name]))
            latencies[name].append(_time(work, 1) if times[name] > 1 else found[name][-1])
    return {name: Timing(tuple(found[name]), tuple(latencies[name])) for name in works}


def ratio(of: Timing, to: Timing) -> float:
    """The median over the rounds of what one takes, as a multiple of what the other takes in the same round."""
    return statistics.median(a / b for a, b in zip(of.rounds, to.rounds, strict=True))


def _time(work: Work, times: int) -> float:
    started = time.perf_counter()
    work.wait([work.start() for _ in range(times)])
    return max((time.perf_counter() - started) / times, 1e-9)
