"""One plain line when training waits for its pictures, and not for the device."""

import time
from collections.abc import Callable

from rmt_jax.data import DataConfig

SLOW, GOOD = 0.30, 0.15  # shares of the time: above the one it is slow, below the other it has become better
_FOR_SECONDS = 30.0  # beside those over which the share itself is taken: a short hiccup is not worth a line


class SlowData:
    """Speaks up once when the share of waiting stays high, and again only when it got better in between.

    config: for the values that may be raised. clock: seconds, never going backwards.
    """

    def __init__(self, config: DataConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._config, self._clock = config, clock
        self._slow_since: float | None = None
        self._said = False

    def check(self, share: float | None) -> str | None:
        """What to say now, if anything. share: of the recent time spent waiting for data, 0 to 1; None if unknown."""
        if share is None or share <= SLOW:
            self._slow_since = None
            if share is not None and share < GOOD:
                self._said = False
            return None
        if self._slow_since is None:
            self._slow_since = self._clock()
        if self._said or self._clock() - self._slow_since < _FOR_SECONDS:
            return None
        self._said = True
        return (
            f"Slow data: {share:.0%} of the time goes into waiting for pictures. Raise data.num_workers (now "
            f"{self._config.num_workers}) or data.num_threads (now {self._config.num_threads}), or prepare the data "
            f"set (rmt data, docs/data.md); `rmt benchmark input` measures what helps."
        )
