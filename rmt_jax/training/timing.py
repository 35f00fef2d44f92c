"""Functions timed in turn in one process, so that whatever else the machine does meets all of them alike."""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple


class Timing(NamedTuple):
    """Seconds of one call, a number for each round."""

    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Of the rounds."""
        return statistics.median(self.rounds)


def time_in_turn(
    functions: Mapping[str, Callable[[], object]], *, rounds: int, seconds: float = 0.3
) -> dict[str, Timing]:
    """The time of each function, which returns when its work is done.

    Every function is called twice first; the second call says how many calls fill `seconds`, and so many make a round.
    """
    calls: dict[str, int] = {}
    for name, function in functions.items():
        function()
        calls[name] = max(1, math.ceil(seconds / _time(function, 1)))
    found: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            found[name].append(_time(function, calls[name]))
    return {name: Timing(tuple(times)) for name, times in found.items()}


def ratio(of: Timing, to: Timing) -> float:
    """The median over the rounds of what one takes, as a multiple of what the other takes in the same round."""
    return statistics.median(a / b for a, b in zip(of.rounds, to.rounds, strict=True))


def _time(function: Callable[[], object], calls: int) -> float:
    started = time.perf_counter()
    for _ in range(calls):
        function()
    return max((time.perf_counter() - started) / calls, 1e-9)
