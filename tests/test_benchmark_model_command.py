"""`rmt benchmark model | train | compile`: what is measured, said, written and refused."""

import json
import pathlib
import sys

import numpy as np
import pytest

from rmt_jax.cli import main
from rmt_jax.ops import formulations
from rmt_jax.training.profile import OTHER, Place, place_of
from rmt_jax.training.timing import Timing, Work, ratio, time_in_turn
from tests.compilation import QUICK_FORMULATIONS
from tests.training import conftest as training

SMALL = ["rmt_nano", "--batch-size=2", "--image-size=32"]
TINY = [
    "--config=configs/digits.py",
    "--batch-size=8",  # one for each of the devices
    *(f"--config.model.architecture.{key}={value}" for key, value in training.TINY.items()),
]


@pytest.fixture(autouse=True, scope="module")
def asked_formulations() -> None:
    """None: what they cost is what is tested."""


def test_work_is_done_in_turn() -> None:
    done: list[str] = []
    works = {name: Work(lambda name=name: name, done.extend) for name in "ab"}
    found = time_in_turn(works, rounds=3, seconds=1e-9)
    assert done == ["a", "a", "b", "b"] + ["a", "b"] * 3
    assert len(found["a"].rounds) == 3
    assert found["a"].median == sorted(found["a"].rounds)[1]
    assert found["a"].latencies == found["a"].rounds


def test_short_work_is_started_over_and_over_before_it_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """As an accelerator's: 20 s until it is done, 1 s more for every further one. By a clock of its own."""
    now, waits = 0.0, list[int]()

    def wait(started: list[None]) -> None:
        nonlocal now
        now += 19 + len(started)
        waits.append(len(started))

    monkeypatch.setattr("rmt_jax.training.timing.time.perf_counter", lambda: now)
    found = time_in_turn({"a": Work(lambda: None, wait)}, rounds=2, seconds=90.0)["a"]
    assert waits == [1, 1, 4, 1, 4, 1]  # 4 times 20 s fit into 90
    assert found.rounds == (23 / 4, 23 / 4)
    assert found.latencies == (20, 20)


def test_the_ratio_is_that_of_each_round() -> None:
    """A machine that is slow in one round is so for both."""
    slow, fast = (2.0, 20.0, 4.0), (1.0, 10.0, 1.0)
    assert ratio(Timing(slow, slow), Timing(fast, fast)) == 2.0


@pytest.mark.parametrize("measure", ["model", pytest.param("train", marks=pytest.mark.slow)])
def test_beside_the_same_model_in_pytorch(
    measure: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.compile", lambda model: _refuse)  # it takes a minute to find out
    file = tmp_path / "speed.json"
    assert main(["benchmark", measure, *TINY, "--vs=torch", "--rounds=2", f"--json={file}"]) == 0
    said = capsys.readouterr().out
    assert "torch compiled does not work: RuntimeError: not here" in said
    assert "times as fast as torch" in said
    content = json.loads(file.read_text())
    assert content["seconds"].keys() == {"rmt_jax", "torch eager", "torch channels-last"}
    assert all(len(rounds) == 2 for rounds in content["seconds"].values())
    assert content["difference"] < 1e-5
    assert content["ratio"]["to"] in content["seconds"]
    assert content["images_per_second"]["rmt_jax"] == pytest.approx(8 / np.median(content["seconds"]["rmt_jax"]))
    assert content["environment"]["packages"]["jax"]


def _refuse(*_: object) -> None:
    raise RuntimeError("not here")


def test_where_the_time_goes(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "speed.json"
    with formulations.asking(**QUICK_FORMULATIONS):
        assert main(["benchmark", "train", *TINY, "--rounds=1", "--profile", f"--json={file}"]) == 0
    assert "Where the time goes" in capsys.readouterr().out
    profiled = json.loads(file.read_text())["profile"]
    seconds = {(row["stage"], row["part"]): (row["forward"], row["backward"]) for row in profiled}
    for place in [("", "stem"), ("stage1", "ffn"), ("stage4", "retention"), ("stage2", "dwconv"), ("", "head")]:
        assert min(seconds[place]) > 0, place
    assert seconds["", "optimizer"][0] > 0


def test_the_place_of_an_operation() -> None:
    assert place_of("jit(f)/transpose(jvp(stage3))/while/body/ffn/dwconv/mul") == Place("stage3", "dwconv", True)
    assert place_of("jit(f)/stage1/retention/add") == Place("stage1", "retention", False)
    assert place_of("jit(f)/jvp()/stemming/add") == Place("", OTHER, False)


@pytest.mark.slow
def test_the_start(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "compile", *TINY]) == 0
    said = capsys.readouterr().out
    assert "compile it" in said
    assert "Each further step keeps the host for" in said


@pytest.mark.slow
def test_for_chips_that_are_not_here(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "cost.json"
    words = ["--topology=v5e:2x2", "--dtype=bfloat16", f"--json={file}"]
    assert main(["benchmark", "model", *SMALL, *words]) == 0
    said = capsys.readouterr().out
    assert "nothing was run" in said
    assert "stage 2, 4x4x" in said
    costs = json.loads(file.read_text())["costs"]
    assert [cost["backward"] for cost in costs] == [False] + [False, True] * 4
    assert costs[0]["count"] == 0 < min(cost["count"] for cost in costs[1:])
    for cost in costs:
        assert cost["bytes"] >= 0.5 * cost["floor"] > 0  # what stays on the chip is not counted
        assert cost["flops"] > 0
    for forward, both in zip(costs[1::2], costs[2::2], strict=True):
        assert (forward["name"], forward["count"]) == (both["name"], both["count"])
        assert both["flops"] == pytest.approx(3 * forward["flops"], rel=0.1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model"], "give a model's name, such as rmt_s, or --config FILE"),
        (["model", "rmt_x"], "rmt_x"),
        (["train", "rmt_s", "--config=configs/rmt_s.py"], "give a model's name, such as rmt_s, or --config FILE"),
        (["model", "rmt_s", "--batch-size=12"], "--batch-size=12 cannot be divided over 8 device(s). Use 8 or 16."),
        (["compile", "rmt_s", "--batch-size=12"], "--batch-size=12 cannot be divided over 8 device(s). Use 8 or 16."),
        (["train", "rmt_s", "--batch-size=0"], "--batch-size=0: expected 1 or more"),
        (["train", "rmt_s", "--config.seed=1"], "--config.seed=1: this changes a recipe, which --config FILE gives"),
        (["model", "rmt_s", "--topology=v5e:2x2", "--vs=torch"], "--topology runs nothing"),
        (["compile", "rmt_s", "--json=nowhere/x"], "in a directory that exists"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_refusals(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", *words]) == 2
    assert message in capsys.readouterr().err


def test_without_pytorch_it_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(["benchmark", "train", *SMALL, "--vs=torch"]) == 2
    assert "--vs torch needs PyTorch: pip install 'rmt-jax[torch]'" in capsys.readouterr().err
