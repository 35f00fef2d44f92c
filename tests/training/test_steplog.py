"""What the log of the steps makes of those that are not finite."""

import pathlib
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
import pytest

from rmt_jax.training.command_line import load_config
from rmt_jax.training.config import parse
from rmt_jax.training.metrics import MetricsWriter, read_metrics
from rmt_jax.training.report import Progress
from rmt_jax.training.setup import Setup, prepare
from rmt_jax.training.steplog import NonFiniteLossError, Skipped, StepLog, skipped_steps

FINITE, NAN, INFINITE_NORM = (1.0, 2.0), (float("nan"), float("nan")), (1.0, float("inf"))
NOTHING = Skipped()
BATCH = {"image": np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3), "label": np.int32([3])}


@pytest.fixture
def setup(words: list[str]) -> Setup:
    return prepare(parse(load_config("configs/digits.py", [*words, "--config.max_skipped_steps=2"])))


@pytest.fixture
def writer(tmp_path: pathlib.Path) -> Iterator[MetricsWriter]:
    with MetricsWriter(tmp_path, resume_step=0) as writer:
        yield writer


def steplog(setup: Setup, writer: MetricsWriter, workdir: pathlib.Path, skipped: Skipped = NOTHING) -> StepLog:
    progress = Progress(10, start_step=0, batch_size=256, steps_per_epoch=5)
    return StepLog(setup, writer, progress, workdir, skipped)


def feed(steps: StepLog, first: int, *values: tuple[float, float]) -> None:
    for number, (loss, norm) in enumerate(values, start=first):
        skipped = not np.isfinite([loss, norm]).all()
        metrics = {"loss": loss, "grad_norm": norm, "skipped": float(skipped)}
        steps.add(number, {name: jnp.float32(value) for name, value in metrics.items()}, BATCH)
    steps.flush()


def test_means_leave_out_skipped_steps_and_count_them(
    setup: Setup, writer: MetricsWriter, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    feed(steplog(setup, writer, tmp_path), 1, NAN, (3.0, 1.0), INFINITE_NORM, NAN)
    first, second = read_metrics(tmp_path / "metrics.jsonl")
    assert (first["step"], first["train/loss"], first["train/grad_norm"], first["train/skipped"]) == (2, 3.0, 1.0, 1)
    assert "train/loss" not in second
    assert (second["train/skipped"], second["train/skipped_in_a_row"]) == (2, 2)
    lines = capsys.readouterr().out.splitlines()
    assert "step 3: loss 1.0, gradient norm inf: skipped (2 so far, 1 in a row)" in lines
    assert not (tmp_path / "nonfinite").exists()


def test_a_resumed_run_counts_on(setup: Setup, writer: MetricsWriter, tmp_path: pathlib.Path) -> None:
    feed(steplog(setup, writer, tmp_path), 1, NAN, FINITE, NAN, NAN)
    assert skipped_steps(tmp_path, 4) == Skipped(total=3, in_a_row=2)
    assert skipped_steps(tmp_path, 2) == Skipped(total=1, in_a_row=0)
    assert skipped_steps(tmp_path / "elsewhere", 2) == Skipped()
    with pytest.raises(NonFiniteLossError, match="of the 2 steps before it"):
        feed(steplog(setup, writer, tmp_path, skipped_steps(tmp_path, 4)), 5, NAN)


def test_the_batch_is_saved_and_the_message_says_how_to_load_it(
    setup: Setup, writer: MetricsWriter, tmp_path: pathlib.Path
) -> None:
    with pytest.raises(NonFiniteLossError) as error:
        feed(steplog(setup, writer, tmp_path, Skipped(2, 2)), 7, INFINITE_NORM)
    file = tmp_path / "nonfinite" / "step_7.npz"
    assert f"dict(numpy.load({str(file)!r})) has image, label." in str(error.value)
    saved = dict(np.load(str(file)))
    assert saved.keys() == BATCH.keys()
    for name, array in BATCH.items():
        np.testing.assert_array_equal(saved[name], array, strict=True)
