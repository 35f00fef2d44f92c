"""The line about slow data: late enough, once, and again only after it got better."""

import pytest

from rmt_jax.data import DataConfig
from rmt_jax.training.slowdata import SlowData
from tests.training.test_report import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


def said(slow: SlowData, clock: Clock, share: float | None, seconds: int) -> int:
    """How many lines come in so many seconds with this share, looked at every second."""
    lines = 0
    for _ in range(seconds):
        clock.advance(1.0)
        lines += slow.check(share) is not None
    return lines


def test_said_once_and_not_at_once(clock):
    slow = SlowData(DataConfig(name="folder"), clock)
    assert said(slow, clock, None, 100) == said(slow, clock, 0.30, 100) == 0
    assert said(slow, clock, 0.31, 29) == 0
    assert said(slow, clock, 0.31, 1000) == 1


def test_a_hiccup_is_not_said(clock):
    slow = SlowData(DataConfig(name="folder"), clock)
    for _ in range(10):
        assert said(slow, clock, 0.9, 25) == said(slow, clock, 0.2, 1) == 0


def test_said_again_only_when_it_got_better(clock):
    slow = SlowData(DataConfig(name="folder"), clock)
    assert said(slow, clock, 0.5, 60) == 1
    assert said(slow, clock, 0.2, 60) == said(slow, clock, 0.5, 60) == 0  # better, not good
    assert said(slow, clock, 0.1, 1) == 0
    assert said(slow, clock, 0.5, 60) == 1


def test_what_to_raise_is_named_with_its_value(clock):
    slow = SlowData(DataConfig(name="folder", num_workers=3, num_threads=5), clock)
    slow.check(0.456)
    clock.advance(31.0)
    message = slow.check(0.456)
    assert message is not None
    assert message.startswith("Slow data: 46% of the time")
    assert "data.num_workers (now 3)" in message
    assert "data.num_threads (now 5)" in message
