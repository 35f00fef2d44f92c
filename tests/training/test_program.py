"""python main.py, run as a user runs it: real processes, real signals, real files."""

import json
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

import jax
import numpy as np
import pytest

from rmt_jax.data import TrainLoader, open_source
from rmt_jax.training.config import parse
from rmt_jax.training.metrics import read_metrics
from tests.saved import saved_arrays
from tests.training.conftest import BATCH, REPOSITORY, STEPS_PER_EPOCH, tiny_words

EPOCHS = 12
STEPS = EPOCHS * STEPS_PER_EPOCH


def start(workdir: pathlib.Path, words: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
    command = [sys.executable, "main.py", "--workdir", str(workdir), *words]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=pipe, stderr=pipe, text=True)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    out, err = process.communicate(timeout=900)
    return process.returncode, out, err


def steps(workdir: pathlib.Path) -> list[int]:
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


def evaluations(workdir: pathlib.Path) -> list[dict[str, Any]]:
    return [row for row in read_metrics(workdir / "metrics.jsonl") if "val/top1" in row]


@pytest.fixture
def run_words(words: list[str]) -> list[str]:
    return [*words, f"--config.epochs={EPOCHS}", "--config.eval_every_epochs=4"]


@pytest.fixture(scope="session")
def finished_run(
    tmp_path_factory: pytest.TempPathFactory, digits_dir: str, environment: dict[str, str]
) -> tuple[pathlib.Path, str]:
    """The workdir and the output of a run from start to end."""
    workdir = tmp_path_factory.mktemp("run") / "digits"
    words = [*tiny_words(digits_dir), f"--config.epochs={EPOCHS}", "--config.eval_every_epochs=4"]
    code, out, err = finish(start(workdir, words, environment))
    assert code == 0, err
    return workdir, out


def test_a_finished_run_leaves_what_it_says(finished_run: tuple[pathlib.Path, str]) -> None:
    workdir, out = finished_run
    for name in (
        "config.json",
        "environment.json",
        "metrics.jsonl",
        "curves.png",
        "predictions.png",
        "evaluation.json",
        "confusion.png",
        "checkpoints",
        "tensorboard",
    ):
        assert (workdir / name).exists()
        assert name in out
    assert json.loads((workdir / "config.json").read_text())["epochs"] == EPOCHS
    assert json.loads((workdir / "classes.json").read_text()) == [str(digit) for digit in range(10)]
    last, evaluated = evaluations(workdir)[-1], json.loads((workdir / "evaluation.json").read_text())
    assert (evaluated["step"], evaluated["weights"], evaluated["split"]) == (STEPS, "ema", "test")
    for name, key in {"top1": "top1", "loss": "loss", "mean_per_class_accuracy": "mean_per_class"}.items():
        assert evaluated[name] == last[f"val_ema/{key}"]
        assert evaluated["raw"][name] == last[f"val/{key}"]
    assert "final, EMA" in out
    assert "\x1b" not in out  # no colours in a file
    rows = read_metrics(workdir / "metrics.jsonl")
    logged = [row["step"] for row in rows if "train/loss" in row]
    assert logged == sorted(set(logged))
    assert logged[-1] == STEPS
    assert rows[0].keys() >= {"epoch", "train/loss", "train/top1", "train/lr", "train/grad_norm"}
    assert [row["epoch"] for row in evaluations(workdir)] == [4, 8, 12]


def test_last_checkpoints_and_the_best_one_are_kept(finished_run: tuple[pathlib.Path, str]) -> None:
    workdir, _ = finished_run
    best = max(reversed(evaluations(workdir)), key=lambda row: row["val_ema/top1"])["step"]
    assert steps(workdir) == sorted({40, STEPS, best})


def test_ctrl_c_saves_and_the_same_command_ends_with_the_same_bits(
    finished_run: tuple[pathlib.Path, str],
    tmp_path: pathlib.Path,
    run_words: list[str],
    environment: dict[str, str],
) -> None:
    whole, workdir, metrics = finished_run[0], tmp_path / "run", tmp_path / "run" / "metrics.jsonl"
    process = start(workdir, run_words, environment)
    while process.poll() is None and not (metrics.exists() and len(metrics.read_text().splitlines()) >= 3):
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    code, out, err = finish(process)
    assert code == 130, err
    assert "The same command goes on from there" in out
    saved = steps(workdir)[-1]
    assert 6 <= saved < STEPS

    code, out, err = finish(start(workdir, run_words, environment))
    assert code == 0, err
    assert f"resumes at step {saved}" in out
    ours, expected = saved_arrays(workdir, STEPS), saved_arrays(whole, STEPS)
    assert len(ours) > 300
    jax.tree.map(np.testing.assert_array_equal, ours, expected)
    assert evaluations(workdir) == evaluations(whole)


def test_a_complete_run_is_not_trained_again(
    finished_run: tuple[pathlib.Path, str], run_words: list[str], environment: dict[str, str]
) -> None:
    before = (finished_run[0] / "metrics.jsonl").read_text()
    code, out, err = finish(start(finished_run[0], run_words, environment))
    assert code == 0, err
    assert "complete already" in out
    assert "final, EMA" in out
    assert (finished_run[0] / "metrics.jsonl").read_text() == before


def test_eval_mode_repeats_the_numbers(
    finished_run: tuple[pathlib.Path, str], run_words: list[str], environment: dict[str, str]
) -> None:
    written = finished_run[0] / "evaluation.json"
    before = json.loads(written.read_text())
    written.unlink()
    code, out, err = finish(start(finished_run[0], [*run_words, "--mode=eval"], environment))
    assert code == 0, err
    assert json.loads(written.read_text()) == before
    assert "training data" not in out
    last = evaluations(finished_run[0])[-1]
    row = next(line for line in out.splitlines() if f"step {STEPS}, EMA" in line)
    assert f"{last['val_ema/top1']:.2f}" in row
    assert f"{last['val_ema/loss']:.4f}" in row


@pytest.mark.slow
def test_weights_of_another_run_and_a_head_that_does_not_fit(
    finished_run: tuple[pathlib.Path, str], tmp_path: pathlib.Path, words: list[str], environment: dict[str, str]
) -> None:
    source = f"--config.init_from={finished_run[0]}"
    code, out, err = finish(start(tmp_path / "same", [*words, source, "--mode=eval"], environment))
    assert code == 0, err
    assert f"{evaluations(finished_run[0])[-1]['val_ema/loss']:.4f}" in out

    wider = "--config.model.architecture.proj_dim=24"
    code, out, err = finish(start(tmp_path / "wider", [*words, source, wider, "--mode=eval"], environment))
    assert code == 2
    assert "lacks what evaluating rmt_nano with 10 classes needs: head/kernel, norm/bias" in err
    assert not (tmp_path / "wider").exists()

    deeper = "--config.model.architecture.depths=(1,1,2,1)"
    code, out, err = finish(start(tmp_path / "deeper", [*words, source, deeper], environment))
    assert code == 2
    assert "is of another model" in err


@pytest.mark.slow
def test_losses_that_are_not_finite_are_skipped_and_then_stop_the_run(
    tmp_path: pathlib.Path, words: list[str], environment: dict[str, str]
) -> None:
    # Epochs 0 and 1 run at the warm-up's learning rate, the third one at 1e30: step 11 throws the weights away.
    words = [
        *words,
        "--config.epochs=6",
        "--config.schedule.warmup_epochs=1",
        "--config.optimizer.learning_rate=1e30",
        "--config.max_skipped_steps=6",
        "--config.checkpoint.every_steps=3",
    ]
    code, out, err = finish(start(tmp_path, words, environment))
    assert code == 1
    assert "step 12: loss nan, gradient norm nan: skipped (1 so far, 1 in a row)" in out
    assert "step 17: loss nan, gradient norm nan: skipped (6 so far, 6 in a row)" in out
    assert "The loss of step 18 is nan, its gradient norm nan: not finite, and nor were those of the 6 steps" in err
    assert "weights up to step 11" in err
    assert "optimizer.clip_norm" in err
    assert steps(tmp_path)[-1] == 10  # none at 12, at 15, at 18
    assert all(np.isfinite(array).all() for array in saved_arrays(tmp_path, 10, ["model"]).values())

    rows = [row for row in read_metrics(tmp_path / "metrics.jsonl") if "train/skipped" in row]
    assert sum(row["train/skipped"] for row in rows) == 7
    assert rows[-1]["step"] == 18
    finite = [row for row in rows if "train/loss" in row]
    assert all(np.isfinite(row["train/loss"]) for row in finite)
    assert finite[-1]["step"] == 12  # the window of steps 11 and 12, of which the first is finite

    [file] = (tmp_path / "nonfinite").iterdir()
    assert file.name == "step_18.npz"
    assert str(file) in err
    saved = dict(np.load(file))
    config = parse(json.loads((tmp_path / "config.json").read_text()))
    loader = TrainLoader(open_source(config.data, config.data.train_split), config.data, batch_size=BATCH, seed=0)
    expected = next(loader.batches(17, 18))
    assert saved.keys() == expected.keys()
    jax.tree.map(np.testing.assert_array_equal, saved, dict(expected))
    assert saved["image"].dtype == np.uint8
