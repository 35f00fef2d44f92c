"""Small real runs of segmentation: trained, interrupted and gone on with, evaluated."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

from rmt_jax.training import run
from rmt_jax.training.metrics import read_metrics
from tests.training.conftest import TINY

CONFIG = "configs/digits.py:segmentation"
# Of 200: what takes time is to compute with them.
EVALUATED = 80


@pytest.fixture
def run_words(digits_segmentation_dir: str) -> list[str]:
    """Eight steps, evaluated after four."""
    return [
        f"--config.data.dir={digits_segmentation_dir}",
        *(f"--config.model.architecture.{key}={value}" for key, value in TINY.items() if key != "proj_dim"),
        "--config.init_from=None",
        "--config.steps=8",
        "--config.eval_every_steps=4",
        "--config.log_every_steps=2",
        "--config.batch_size=8",
        f"--config.data.eval_split=test[:{EVALUATED}]",
        "--config.eval_batch_size=40",
        "--config.data.segmentation.crop_size=(64, 64)",
        "--config.segmentation.overlays=3",
    ]


@pytest.mark.slow
def test_a_run_is_trained_evaluated_and_gone_on_with(
    run_words: list[str], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert run(CONFIG, run_words, workdir=str(whole)) == 0
    said = " ".join(capsys.readouterr().out.split())
    pictures = f"{EVALUATED} pictures, 11 classes"
    for words in (pictures, "cross entropy over labelled pixels", "final, EMA", "pixels right (%)"):
        assert words in said
    rows = read_metrics(whole / "metrics.jsonl")
    assert [row["step"] for row in rows if "val_ema/mIoU" in row] == [4, 8]
    assert all(np.isfinite(row["train/pixel_accuracy"]) for row in rows if "train/loss" in row)
    found = json.loads((whole / "evaluation.json").read_text())
    assert (found["pictures"], found["unreadable"], len(found["classes"])) == (EVALUATED, 0, 11)
    assert sum(entry["pixels"] for entry in found["classes"].values()) == EVALUATED * 96 * 96
    overlays = sorted((whole / "overlays").iterdir())
    assert len(overlays) == 3
    with Image.open(overlays[0]) as picture:
        assert picture.size == (96, 96)
    assert (whole / "predictions.png").exists()

    shutil.copytree(whole, halves)
    shutil.rmtree(halves / "checkpoints" / "8")  # the same run, stopped half way
    assert run(CONFIG, run_words, workdir=str(halves)) == 0
    resumed = {row["step"]: row for row in read_metrics(halves / "metrics.jsonl") if "train/loss" in row}
    assert resumed[8]["train/loss"] == {row["step"]: row for row in rows if "train/loss" in row}[8]["train/loss"]

    capsys.readouterr()
    flip = ["--config.segmentation.flip=True", "--config.data.segmentation.eval_ratios=(1.0, 1.25)"]
    assert (
        run(CONFIG, [*run_words, *flip, f"--config.init_from={whole}"], workdir=str(tmp_path / "eval"), mode="eval")
        == 0
    )
    said = " ".join(capsys.readouterr().out.split())
    assert "mirrored too, at 1, 1.25 times the size" in said
    assert "Classes with the lowest IoU" in said
    assert json.loads((tmp_path / "eval" / "evaluation.json").read_text())["mIoU"] > 0


def test_weights_of_other_classes_are_named_before_training(
    run_words: list[str], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*run_words, "--config.data.segmentation.num_classes=7"]
    assert run(CONFIG, words, workdir=str(tmp_path / "run")) == 2
    assert "7" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
