"""Small real runs of detection: trained, interrupted and gone on with, evaluated."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

from rmt_jax.training import run
from rmt_jax.training.metrics import read_metrics
from tests.training.conftest import TINY

pytestmark = pytest.mark.slow


@pytest.fixture
def run_words(digits_detection_dir: str) -> list[str]:
    """Four steps, evaluated after two."""
    return [
        f"--config.data.dir={digits_detection_dir}",
        *(f"--config.model.architecture.{key}={value}" for key, value in TINY.items() if key != "proj_dim"),
        "--config.model.architecture.pyramid_features=8",
        "--config.steps=4",
        "--config.eval_every_steps=2",
        "--config.log_every_steps=1",
        "--config.eval_batch_size=40",
        "--config.data.detection.scales=((96, 96),)",
        "--config.data.detection.canvas=(96, 96)",
        "--config.data.detection.eval_scale=(96, 96)",
        "--config.detection.overlays=3",
    ]


@pytest.mark.parametrize("head", ["retinanet", "cascade_mask_rcnn"])
def test_a_run_is_trained_evaluated_and_gone_on_with(
    head: str, run_words: list[str], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = f"configs/digits.py:detection,head={head}"
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert run(config, run_words, workdir=str(whole)) == 0
    said = " ".join(capsys.readouterr().out.split())
    for words in ("200 pictures, 10 classes", "over the boxes of a pair; masked canvas", "final, EMA", "box AP (%)"):
        assert words in said
    rows = read_metrics(whole / "metrics.jsonl")
    assert [row["step"] for row in rows if "val_ema/box_AP" in row] == [2, 4]
    trained = {row["step"]: row for row in rows if "train/loss" in row}
    name = "train/loss_cls" if head == "retinanet" else "train/s2_loss_mask"
    assert all(np.isfinite(row[name]) for row in trained.values())
    found = json.loads((whole / "evaluation.json").read_text())
    assert (found["pictures"], found["unreadable"], len(found["classes"])) == (200, 0, 10)
    assert ("mask_AP" in found) == ("mask_AP" in next(iter(found["classes"].values()))) == (head != "retinanet")
    assert sum(entry["objects"] for entry in found["classes"].values()) > 400
    overlays = sorted((whole / "overlays").iterdir())
    assert len(overlays) == 3
    with Image.open(overlays[0]) as picture:
        assert min(picture.size) >= 224  # twice the size and more, for the text
    assert (whole / "predictions.png").exists()

    shutil.copytree(whole, halves)
    shutil.rmtree(halves / "checkpoints" / "4")  # the same run, stopped half way
    assert run(config, run_words, workdir=str(halves)) == 0
    resumed = {row["step"]: row for row in read_metrics(halves / "metrics.jsonl") if "train/loss" in row}
    assert resumed[4]["train/loss"] == trained[4]["train/loss"]

    evaluated = tmp_path / "eval"
    assert run(config, [*run_words, f"--config.init_from={whole}"], workdir=str(evaluated), mode="eval") == 0
    assert "Classes with the lowest AP" in " ".join(capsys.readouterr().out.split())
    again = json.loads((evaluated / "evaluation.json").read_text())
    assert again["box_AP"] == found["box_AP"]
    results = json.loads((evaluated / "box_results.json").read_text())
    assert all(set(entry) == {"image_id", "category_id", "bbox", "score"} for entry in results)
