"""configs/finetune.py as docs/training.md shows it: real programs, on photographs in one folder without splits."""

import json
import pathlib

import numpy as np
import pytest

from rmt_jax.convert import read_weights
from rmt_jax.training.metrics import read_metrics
from tests.standin import Pictures
from tests.training.conftest import REPOSITORY
from tests.training.test_program import finish, start

pytestmark = pytest.mark.slow

DIGITS = REPOSITORY / "notebooks" / "rmt_nano_digits.safetensors"
Run = tuple[pathlib.Path, str]  # workdir, what was printed


@pytest.fixture(scope="module")
def words(standin: tuple[pathlib.Path, dict[str, Pictures]]) -> list[str]:
    """The config and the data; 72 pictures of eight classes, one of them unreadable."""
    return [
        "--config=configs/finetune.py:rmt_nano",
        f"--config.data.dir={standin[0] / 'flat'}",
        "--config.data.eval_fraction=0.25",
        "--config.data.image_size=64",
        "--config.data.max_unreadable=0.1",
        "--config.batch_size=16",
        "--config.eval_every_epochs=2",
    ]


def run(workdir: pathlib.Path, words: list[str], environment: dict[str, str]) -> str:
    code, out, err = finish(start(workdir, words, environment))
    assert code == 0, err
    return out


@pytest.fixture(scope="module")
def finetuned(words: list[str], environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Run:
    workdir = tmp_path_factory.mktemp("finetuned")
    return workdir, run(workdir, [*words, "--config.epochs=12", f"--config.init_from={DIGITS}"], environment)


def test_digits_weights_learn_photographs(finetuned: Run) -> None:
    workdir, out = finetuned
    assert "fresh: head/bias, head/kernel" in out
    assert "layer decay 0.85" in out
    rows = [row for row in read_metrics(workdir / "metrics.jsonl") if "val/top1" in row]
    assert rows[-1]["val/loss"] < rows[0]["val/loss"]
    assert rows[-1]["val/top1"] > 2 * 100 / 8  # well above chance
    evaluation = json.loads((workdir / "evaluation.json").read_text())
    assert len(evaluation["classes"]) == 8
    assert read_weights(workdir).class_names == tuple(evaluation["classes"])


def test_evaluation_of_the_run_repeats_its_numbers(
    finetuned: Run, words: list[str], environment: dict[str, str]
) -> None:
    workdir, _ = finetuned
    before = json.loads((workdir / "evaluation.json").read_text())
    run(workdir, [*words, "--config.epochs=12", f"--config.init_from={DIGITS}", "--mode=eval"], environment)
    after = json.loads((workdir / "evaluation.json").read_text())
    assert after["top1"] == before["top1"]
    np.testing.assert_allclose(after["loss"], before["loss"], rtol=1e-5)


def test_a_linear_probe_leaves_the_backbone_alone(
    words: list[str], environment: dict[str, str], tmp_path: pathlib.Path
) -> None:
    changes = ["--config.epochs=1", "--config.freeze_backbone=True", "--config.optimizer.learning_rate=1e-2"]
    out = run(tmp_path, [*words, *changes, f"--config.init_from={DIGITS}"], environment)
    assert "the head alone" in out
    before, after = read_weights(DIGITS).arrays, read_weights(tmp_path, weights="raw").arrays
    moved = {path for path in after if not np.array_equal(before[path], after[path])}
    assert moved == {"head/kernel", "head/bias"}


def test_a_run_is_the_teacher_of_another(
    finetuned: Run, words: list[str], environment: dict[str, str], tmp_path: pathlib.Path
) -> None:
    changes = ["--config.epochs=2", "--config.loss=bce", f"--config.distill.teacher={finetuned[0]}"]
    out = " ".join(run(tmp_path, [*words, *changes, "--config.distill.kind=soft"], environment).split())
    assert "binary cross entropy, labels smoothed by 0.1, soft distillation from" in out
    losses = [row["train/loss"] for row in read_metrics(tmp_path / "metrics.jsonl") if "train/loss" in row]
    assert np.isfinite(losses).all()


def test_a_teacher_of_other_classes_is_refused(
    words: list[str], environment: dict[str, str], tmp_path: pathlib.Path
) -> None:
    code, _, err = finish(start(tmp_path, [*words, f"--config.distill.teacher={DIGITS}"], environment))
    assert code == 2
    assert "has 10 classes, the data set has 8 classes" in err
    assert not list(tmp_path.iterdir())
