"""What is printed, with a clock that only moves when told to."""

import contextlib
import io
import pathlib

import pytest
from rich.console import Console

from rmt_jax.training import report


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def plain_console() -> Console:
    return Console(file=io.StringIO(), force_terminal=False, force_interactive=False, width=80)


def terminal_console() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, force_interactive=True, width=80)


def printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def make_progress(clock: Clock, console: Console | None = None, total_steps: int = 1000, start_step: int = 0):
    return report.Progress(
        total_steps,
        start_step=start_step,
        batch_size=8,
        steps_per_epoch=100,
        console=console or plain_console(),
        clock=clock,
    )


def run(progress: report.Progress, clock: Clock, first: int, last: int, seconds: float = 0.5) -> None:
    for step in range(first, last + 1):
        clock.advance(seconds)
        progress.update(step, loss=1.0)


def test_nothing_is_known_before_the_second_measurement(clock):
    with make_progress(clock) as progress:
        assert progress.images_per_second is progress.data_wait_share is progress.seconds_left is None
        run(progress, clock, 1, 1)
        assert progress.images_per_second is progress.data_wait_share is progress.seconds_left is None


def test_speed_leaves_out_compilation(clock):
    with make_progress(clock) as progress:
        clock.advance(300)
        run(progress, clock, 1, 11)
        assert progress.images_per_second == pytest.approx(16)
        assert progress.seconds_left == pytest.approx(989 * 0.5)


def test_speed_leaves_out_pauses_and_the_waiting_in_them(clock):
    with make_progress(clock) as progress:
        run(progress, clock, 1, 5)
        with progress.paused("evaluating"):
            with progress.waiting_for_data():
                clock.advance(20)
            with progress.paused("saving"):
                clock.advance(30)
            clock.advance(50)
        run(progress, clock, 6, 10)
        assert progress.images_per_second == pytest.approx(16)
        assert progress.data_wait_share == 0


def test_a_pause_before_the_first_step_does_not_count(clock):
    with make_progress(clock) as progress:
        with progress.paused("evaluating"):
            clock.advance(100)
        run(progress, clock, 1, 3)
        assert progress.images_per_second == pytest.approx(16)


def test_data_wait_share(clock):
    with make_progress(clock) as progress:
        with progress.waiting_for_data():
            clock.advance(60)  # the loader starting up, part of the first step
        progress.update(1)
        for step in range(2, 6):
            with progress.waiting_for_data():
                clock.advance(0.1)
            clock.advance(0.3)
            progress.update(step, loss=1.0)
        assert progress.data_wait_share == pytest.approx(0.25)


def test_speed_is_taken_where_the_device_is_known_to_have_finished(clock):
    with make_progress(clock) as progress:
        run(progress, clock, 1, 1)
        for step in range(2, 11):
            clock.advance(0.001)  # dispatched, not finished
            progress.update(step)
        clock.advance(5 - 0.009)
        progress.update(11, loss=1.0)
        for step in range(12, 16):
            clock.advance(0.001)
            progress.update(step)
        assert progress.images_per_second == pytest.approx(16)


def test_speed_follows_the_last_half_minute(clock):
    with make_progress(clock) as progress:
        run(progress, clock, 1, 200, seconds=0.5)
        run(progress, clock, 201, 210, seconds=4.0)
        assert progress.images_per_second == pytest.approx(2)


def test_resumed_run_counts_only_its_own_steps(clock):
    with make_progress(clock, start_step=500) as progress:
        clock.advance(10)
        run(progress, clock, 501, 511)
        assert progress.images_per_second == pytest.approx(16)
        assert progress.seconds_left == pytest.approx(489 * 0.5)


def test_plain_lines(clock):
    console = plain_console()
    with make_progress(clock, console) as progress:
        run(progress, clock, 1, 1000)
    lines = printed(console).splitlines()
    assert lines[0] == "epoch 1/10, step 0/1000: compiling"
    assert lines[1].startswith("epoch 1/10, step 20/1000: loss 1.0000, 16.0 images/s, data wait 0%, 8:10 left")
    assert lines[-1].startswith("epoch 10/10, step 1000/1000: ")
    assert lines[-1].endswith(", in 8:20")
    assert "\x1b" not in printed(console)
    assert 20 < len(lines) < 51, "about every ten seconds, more rarely in a long run"
    assert max(map(len, lines)) <= 80


def test_plain_line_at_the_end_of_an_interrupted_run(clock):
    console = plain_console()
    with contextlib.suppress(KeyboardInterrupt), make_progress(clock, console) as progress:
        run(progress, clock, 1, 3)
        raise KeyboardInterrupt
    assert printed(console).splitlines()[-1].startswith("epoch 1/10, step 3/1000: loss 1.0000")


def test_a_finished_run_prints_no_progress(clock):
    console = plain_console()
    with make_progress(clock, console, start_step=1000):
        pass
    assert printed(console) == ""


def test_a_loss_that_is_not_finite_is_shown(clock):
    console = plain_console()
    with make_progress(clock, console) as progress:
        progress.update(1, loss=float("nan"))
    assert "loss nan" in printed(console)


def test_terminal_shows_a_bar(clock):
    console = terminal_console()
    with make_progress(clock, console) as progress:
        console.print(progress._render())
        assert "compiling" in printed(console)
        clock.advance(3)
        run(progress, clock, 1, 500)
        progress.update(500, lr=2e-3)
        with progress.paused("evaluating"):
            console.print(progress._render())
        report.log("a line [between]", console=console)
    text = printed(console)
    assert "\x1b[" in text
    assert "━" in text
    assert "evaluating  loss 1.0000  lr 2.0e-03  16.0 images/s  data wait 0%" in text
    assert "4:10 left" in text
    assert "a line [between]" in text
    assert "epoch 5/10, step 500/1000" in text[text.index("a line [between]") :]


def test_a_quiet_console_prints_nothing_and_leaves_stdout_alone(clock, tmp_path, capsys):
    console = Console(file=io.StringIO(), force_terminal=True, force_interactive=True, quiet=True)
    with make_progress(clock, console) as progress:
        run(progress, clock, 1, 100)
        print("still heard")
    report.print_summary("title", {"model": "rmt_nano"}, console=console)
    report.print_results({}, seconds=1.0, workdir=tmp_path, console=console)
    assert printed(console) == ""
    assert capsys.readouterr().out == "still heard\n"


def test_summary_wraps_and_keeps_brackets():
    console = plain_console()
    report.print_summary("RMT [nano]", {"model": "rmt_nano [x]", "data set": "digits " * 20}, console=console)
    text = printed(console)
    assert "RMT [nano]" in text
    assert "rmt_nano [x]" in text
    assert text.count("digits") == 20
    assert max(map(len, text.splitlines())) <= 80


def test_results_and_where_they_lie(tmp_path: pathlib.Path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "metrics.jsonl").touch()
    console = plain_console()
    rows = {"final": {"top1": 98.333, "top5": 100, "loss": 0.08123, "epoch": 60}, "best, EMA": {"top1": 98.61}}
    report.print_results(rows, seconds=3725.0, workdir=tmp_path, console=console)
    lines = [line.split() for line in printed(console).splitlines()]
    assert ["weights", "top-1", "(%)", "top-5", "(%)", "loss", "epoch"] in lines
    assert ["final", "98.33", "100.00", "0.0812", "60"] in lines
    assert ["best,", "EMA", "98.61"] in lines
    assert f"Took 1:02:05. In {tmp_path}:" in printed(console)
    assert "checkpoints" in printed(console)
    assert "predictions.png" not in printed(console), "not there"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0:00"), (45.0, "0:45"), (754.0, "12:34"), (3600.0, "1:00:00"), (90061.0, "1 day, 1:01:01")],
)
def test_format_duration(seconds, text):
    assert report.format_duration(seconds) == text
