"""Several real processes of main.py as one run: equal numbers, one decision to stop, errors that reach all."""

import itertools
import json
import pathlib
import re
import signal
import subprocess
import sys

import numpy as np
import pytest

from rmt_jax.training.exit_codes import TRY_AGAIN
from rmt_jax.training.metrics import read_metrics
from tests.saved import saved_arrays
from tests.standin import Pictures
from tests.training.conftest import BATCH, REPOSITORY, STEPS_PER_EPOCH, tiny_words
from tests.training.processes import Ended, Processes, free_port, logged_steps

pytestmark = pytest.mark.slow

EPOCHS = 4
# Sums over the batch are taken in another order: the float32 noise of that, relative to an array's largest value, or 1.
BOUND = 1e-5


def all_words(digits_dir: str) -> list[str]:
    """Everything that depends on the whole batch at once: BatchNorm, mixing, drop path, accumulation, the average."""
    return [
        *tiny_words(digits_dir),
        f"--config.epochs={EPOCHS}",
        "--config.eval_every_epochs=2",
        "--config.log_every_steps=1",
        "--config.data.num_workers=0",
        "--config.model.drop_path=0.3",
        "--config.mix.mixup=0.8",
        "--config.mix.cutmix=1.0",
        f"--config.mix.group={BATCH // 2}",
        "--config.erasing=0.25",
        "--config.grad_accum_steps=2",
        # Steps proportional to the gradient: at Adam's usual epsilon the biases before a BatchNorm, whose true gradient
        # is zero, make whole steps of the rounding noise, and the running means behind them move along.
        "--config.optimizer.epsilon=1.0",
        "--config.optimizer.learning_rate=0.1",
        "--config.schedule.warmup_epochs=0",
    ]


def weights(workdir: pathlib.Path, step: int) -> dict[str, np.ndarray]:
    return saved_arrays(workdir, step, ("model", "ema"))


def losses(workdir: pathlib.Path) -> dict[int, float]:
    rows = [row for row in read_metrics(workdir / "metrics.jsonl") if "train/loss" in row]
    assert len({row["step"] for row in rows}) == len(rows)
    return {row["step"]: row["train/loss"] for row in rows}


def evaluations(workdir: pathlib.Path) -> list[tuple[float, float]]:
    rows = read_metrics(workdir / "metrics.jsonl")
    return [(row["val/loss"], row["val_ema/loss"]) for row in rows if "val/loss" in row]


def finished(workdir: pathlib.Path, words: list[str], environment: dict[str, str], count: int) -> list[Ended]:
    with Processes(workdir, words, environment, count=count) as processes:
        return processes.finish()


def assert_same_run(ours: pathlib.Path, expected: pathlib.Path) -> None:
    """Losses of every step, evaluations, final weights."""
    got, wanted = losses(ours), losses(expected)
    assert sorted(got) == sorted(wanted) == list(range(1, EPOCHS * STEPS_PER_EPOCH + 1))
    np.testing.assert_allclose([got[step] for step in wanted], list(wanted.values()), rtol=BOUND)
    np.testing.assert_allclose(evaluations(ours), evaluations(expected), rtol=BOUND)
    mine, theirs = weights(ours, EPOCHS * STEPS_PER_EPOCH), weights(expected, EPOCHS * STEPS_PER_EPOCH)
    assert mine.keys() == theirs.keys()
    assert len(mine) > 200
    for name, array in mine.items():
        scale = max(1.0, float(np.abs(theirs[name]).max()))
        np.testing.assert_allclose(array, theirs[name], rtol=0, atol=BOUND * scale, err_msg=name)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, digits_dir: str, environment: dict[str, str]) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("alone") / "run"
    (ended,) = finished(workdir, all_words(digits_dir), environment, 1)
    assert ended.code == 0, ended.err
    assert "this process" not in ended.out
    return workdir


def test_two_processes_are_one_run(
    alone: pathlib.Path, tmp_path: pathlib.Path, digits_dir: str, environment: dict[str, str]
) -> None:
    first, second = finished(tmp_path / "run", all_words(digits_dir), environment, 2)
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert f"reads {BATCH // 2} of the {BATCH} pictures of each batch" in first.out
    assert second.out.replace("[Gloo]", "").count("\n") <= 2  # logs come from the first
    assert_same_run(tmp_path / "run", alone)
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert files == {path.name for path in alone.iterdir()}


def test_a_signal_to_one_of_two_saves_and_one_goes_on(
    alone: pathlib.Path, tmp_path: pathlib.Path, digits_dir: str, environment: dict[str, str]
) -> None:
    workdir, words = tmp_path / "run", all_words(digits_dir)
    with Processes(workdir, words, environment, count=2) as processes:
        processes.wait_for(lambda: len(logged_steps(workdir)) >= 3)
        processes.processes[1].send_signal(signal.SIGTERM)
        ended = processes.finish()
    assert [each.code for each in ended] == [143] * 2, ended
    assert "Another process asked to stop" in ended[0].out
    assert re.search(
        r"host \S+ \(process 1\): SIGTERM \(once more.*\): stopping after this step and saving", ended[1].err
    )
    saved = [path.name for path in (workdir / "checkpoints").iterdir()]
    assert len(saved) == 1
    assert 3 <= int(saved[0]) < EPOCHS * STEPS_PER_EPOCH
    (last,) = finished(workdir, words, environment, 1)
    assert last.code == 0, last.err
    assert f"resumes at step {saved[0]}" in last.out
    assert_same_run(workdir, alone)


def test_a_hung_and_a_killed_process_are_named(
    tmp_path: pathlib.Path, digits_dir: str, environment: dict[str, str]
) -> None:
    words = [*all_words(digits_dir), "--config.epochs=400", "--config.eval_every_epochs=400"]
    with Processes(tmp_path / "run", [*words, "--config.watchdog_seconds=3"], environment, count=2) as processes:
        processes.wait_for(lambda: len(logged_steps(tmp_path / "run")) >= 3)
        processes.processes[1].send_signal(signal.SIGSTOP)
        processes.wait_for(lambda: re.search(r"process 1 \S+ \S+ not heard of for", processes.text(0)) is not None, 60)
        message = processes.text(0)
        processes.processes[1].kill()
        first, second = processes.finish(60)
    assert re.search(r"no step finished for \d+ s: process 0 \(host \S+\) in step \d+ for \d+ s; process 1 ", message)
    assert message.count("most recent call first") >= 1  # where each thread stands, once
    assert (first.code, second.code) == (TRY_AGAIN, -9)
    assert re.search(r"stopped: host \S+ \(process 1\): not heard of for \d+ s, the last time in step", first.err)


def test_data_missing_on_one_host_ends_both(
    tmp_path: pathlib.Path,
    standin: tuple[pathlib.Path, dict[str, Pictures]],
    environment: dict[str, str],
    digits_dir: str,
) -> None:
    words = [
        *tiny_words(digits_dir),
        "--config.data.name=folder",
        "--config.data.train_split=train",
        "--config.data.eval_split=val",
        "--config.batch_size=2",
    ]
    folders = {0: standin[0] / "folder", 1: tmp_path / "nowhere"}
    more = {index: [f"--config.data.dir={folder}"] for index, folder in folders.items()}
    with Processes(tmp_path / "run", words, environment, count=2, more=more) as processes:
        first, second = processes.finish(120)
    assert (first.code, second.code) == (2, 2), first.err + second.err
    assert second.err.startswith("error: ")
    assert re.search(r"stopped: host \S+ \(process 1\): .*nowhere", first.err)


def test_devices_that_do_not_start_on_one_host_end_both(
    tmp_path: pathlib.Path, environment: dict[str, str], digits_dir: str
) -> None:
    """They start together, so the other one would wait for minutes."""
    different = {1: {"JAX_PLATFORMS": "none_such"}}
    words = tiny_words(digits_dir)
    with Processes(tmp_path / "run", words, environment, count=2, different=different) as processes:
        first, second = processes.finish(60)
    assert (first.code, second.code) == (TRY_AGAIN, TRY_AGAIN), first.err + second.err
    reason = "jax finds no device for JAX_PLATFORMS=none_such: Unable to initialize backend 'none_such'"
    assert f"stopped: {reason}" in second.err
    assert re.search(rf"stopped: host \S+ \(process 1\): {reason}", first.err)


def test_processes_that_differ_are_refused(
    tmp_path: pathlib.Path, digits_dir: str, environment: dict[str, str]
) -> None:
    more = {1: ["--config.seed=4", "--config.data.num_threads=2"]}
    with Processes(tmp_path / "run", tiny_words(digits_dir), environment, count=2, more=more) as processes:
        ended = processes.finish(120)
    for each in ended:
        assert each.code == 2
        assert re.search(
            r"differ:\n  process 1 \(host \S+\): config.seed: 4 there, 0 on process 0 \(host \S+\)\n", each.err
        )
    assert not (tmp_path / "run").exists()


def test_a_workdir_that_is_not_shared_is_refused(
    tmp_path: pathlib.Path, digits_dir: str, environment: dict[str, str]
) -> None:
    more = {1: [f"--workdir={tmp_path / 'other'}"]}
    with Processes(tmp_path / "run", tiny_words(digits_dir), environment, count=2, more=more) as processes:
        ended = processes.finish(120)
    for each in ended:
        assert each.code == 2
        assert re.search(r"not one folder for all processes: process 1 \(host \S+\) does not see", each.err)
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def opened(digits_dir: str, environment: dict[str, str]) -> dict[int, list[list[list[str]]]]:
    """{number of processes: for each process and step the records it opened}."""
    found = {}
    for count in (1, 2, 4):
        where = f"127.0.0.1:{free_port()}"
        words = [*tiny_words(digits_dir), "--config.data.num_workers=0"]
        command = [sys.executable, "-m", "tests.training.reading", where, str(count)]
        running = [
            subprocess.Popen(
                [*command, str(index), *words], cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True
            )
            for index in range(count)
        ]
        texts = [process.communicate(timeout=120)[0] for process in running]
        found[count] = [json.loads(text.splitlines()[-1]) for text in texts]
    return found


@pytest.mark.parametrize("count", [2, 4])
def test_each_process_opens_its_own_part_of_each_batch(opened: dict[int, list[list[list[str]]]], count: int) -> None:
    for step in range(2):
        parts = [process[step] for process in opened[count]]
        together = list(itertools.chain(*parts))
        assert len(set(together)) == len(together)
        assert set(together) == set(opened[1][0][step])
        assert {len(part) for part in parts} == {BATCH // count}
