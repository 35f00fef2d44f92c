"""What is said when nothing moves, and when."""

from rmt_jax.training.watchdog import Stand, Status, Watchdog, describe_stands


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_says_it_after_the_time_and_then_at_doubling_intervals() -> None:
    clock = Clock()
    status, dog, said = Status(clock), Watchdog(600.0), list[float]()
    status.enter("in step 812")
    for clock.now in map(float, range(0, 6000, 10)):
        if dog.check({"process 0 (host a)": status.stand()}):
            said.append(clock.now)
    assert said == [600, 1200, 2400, 4800]
    status.progressed()
    assert dog.check({"process 0 (host a)": status.stand()}) is None
    clock.now += 600
    message = dog.check({"process 0 (host a)": status.stand()})
    assert message == "no step finished for 600 s: process 0 (host a) in step 812 for 6590 s"


def test_compilation_and_start_may_take_any_time() -> None:
    dog = Watchdog(5.0)
    assert dog.check({"a": Stand("starting", 100.0, 100.0), "b": Stand("compiling", 100.0, 100.0)}) is None
    assert dog.check({"a": Stand("starting", 100.0, 100.0), "b": Stand("in step 3", 100.0, 100.0)}) is not None


def test_time_counts_from_the_end_of_the_start() -> None:
    clock = Clock()
    status, dog = Status(clock), Watchdog(5.0)
    clock.now = 100.0
    with status.doing("waiting for data"):
        assert dog.check({"a": status.stand()}) is None
        clock.now = 105.0
        assert dog.check({"a": status.stand()}) is not None


def test_one_process_that_moves_is_enough() -> None:
    assert Watchdog(5.0).check({"a": Stand("evaluating", 9.0, 9.0), "b": Stand("evaluating", 9.0, 1.0)}) is None


def test_a_phase_inside_another() -> None:
    clock = Clock()
    status = Status(clock)
    status.enter("in step 1")
    with status.doing("waiting for data"):
        clock.now = 7.0
        assert str(status.stand()) == "waiting for data for 7 s"
    assert status.stand() == Stand("in step 1", 0.0, 0.0)


def test_travels_as_text_and_says_how_old_it_is() -> None:
    stand = Stand.from_json(Stand("in step 4", 2.0, 3.0).to_json(), 10.0)
    assert stand == Stand("in step 4", 12.0, 13.0, 10.0)
    assert str(stand) == "not heard of for 10 s, then in step 4"


def test_of_very_many_the_unlike_ones_are_listed() -> None:
    stands = {f"process {index}": Stand("in step 4", 2.0, 3.0) for index in range(100)}
    stands["process 70"] = Stand("waiting for data", 9.0, 9.0)
    text = describe_stands(stands)
    assert "process 70 waiting for data for 9 s" in text
    assert text.endswith("; and 92 others")
