"""`rmt predict`: what it says and writes of a classifier, a segmentor and a detector."""

import csv
import dataclasses
import io
import json
import pathlib
import shutil

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from rmt_jax.cli import main
from rmt_jax.convert import DensePreprocessing, Preprocessing, Weights, read_weights, write_weights
from rmt_jax.data.resize import resize_image
from rmt_jax.data.segmentation import palette
from rmt_jax.models import AnyModel, abstract_model, build_model, variant
from rmt_jax.models.arrays import flat_paths, model_arrays
from rmt_jax.ops import resize_bilinear
from rmt_jax.tasks import DetectionConfig, SegmentationConfig, normalize
from rmt_jax.training.prediction import Predictor, Settings, run_settings
from tests.models.small import SIZES

NAMES = ("cat", "dog", "tree", "sky", "water")
PREPROCESSING = Preprocessing(32, 1.0, "bilinear", (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))


def write(path: pathlib.Path, task: str) -> AnyModel:
    """A small model with weights from numpy, in evaluation mode, written as a model directory."""
    config = variant("rmt_nano", proj_dim=12, pyramid_features=8, **SIZES)
    head = {"segmentation": "semantic_fpn", "detection": "mask_rcnn"}.get(task)
    model = abstract_model(lambda rngs: build_model(config, task, head, dtype=jnp.float32, rngs=rngs))
    rng = np.random.default_rng(0)

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        values = 1 + rng.random(shape) if name.endswith(("scale", "var")) else rng.normal(0, 0.3, shape)
        return values.astype(np.float32)

    arrays = {name: draw(name, leaf.shape) for name, leaf in flat_paths(model_arrays(model))}
    weights = Weights(
        "rmt_nano", task, model.config, arrays, class_names=NAMES, preprocessing=PREPROCESSING, head=head
    )  # fmt: skip
    write_weights(weights, path)
    return weights.to_model()


@pytest.fixture
def picture(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "photo.png"
    colours = np.random.default_rng(1).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(colours).resize((83, 61), Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Weights of a classifier, as a model directory. Not to be changed."""
    path = tmp_path_factory.mktemp("weights") / "classifier"
    write(path, "classification")
    return path


@pytest.fixture
def folder(tmp_path: pathlib.Path, picture: pathlib.Path) -> pathlib.Path:
    """Five pictures in two folders, one that is damaged, and what is none."""
    top = tmp_path / "photos"
    (top / "more").mkdir(parents=True)
    rng = np.random.default_rng(2)
    for name in ("b.jpg", "a.png", "more/b.webp", "more/c.PNG"):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(top / name)
    shutil.copy(picture, top / "photo.png")
    (top / "damaged.jpg").write_bytes(b"\xff\xd8\xff nothing")
    (top / "notes.txt").write_text("no picture")
    (top / ".hidden.png").write_bytes(b"")
    return top


def test_a_classifier_says_the_likeliest(
    classifier: pathlib.Path, picture: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(classifier), str(picture), "--top", "5"]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == f"{picture}:"
    shares = [float(line.split("%")[0]) for line in lines]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(100, abs=0.5)
    assert {line.split("%")[1].strip() for line in lines} == set(NAMES)


def test_folders_in_batches_to_json_and_csv(
    classifier: pathlib.Path, folder: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["predict", str(classifier), str(folder), "--top", "2", "--batch-size", "2"]
    assert main([*words, "--json", str(tmp_path / "found.json"), "--csv", "-", "--save", str(tmp_path / "out")]) == 1
    table, messages = capsys.readouterr()
    assert "cannot decode the picture" in messages
    assert "1 of 6 pictures could not be read." in messages
    names = [str(folder / name) for name in ("a.png", "b.jpg", "more/b.webp", "more/c.PNG", "photo.png")]
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["model"], found["task"]) == ("rmt_nano", "classification")
    assert [entry["picture"] for entry in found["predictions"]] == names
    assert [entry["picture"] for entry in found["skipped"]] == [str(folder / "damaged.jpg")]
    predictor = Predictor(read_weights(classifier))
    rows = list(csv.DictReader(io.StringIO(table)))
    for name, entry in zip(names, found["predictions"], strict=True):
        expected = predictor.probabilities(Image.open(name).convert("RGB"))
        order = np.argsort(-expected)[:2]
        assert [(best["label"], best["class"]) for best in entry["classes"]] == [
            (label, NAMES[label]) for label in order
        ]
        np.testing.assert_allclose([best["probability"] for best in entry["classes"]], expected[order], rtol=1e-4)
        same = [row for row in rows if row["picture"] == name]
        assert [row["class"] for row in same] == [best["class"] for best in entry["classes"]]
        assert [float(row["probability"]) for row in same] == [best["probability"] for best in entry["classes"]]
    drawn = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png"))
    assert drawn == [f"{name}_classes.png" for name in ("a", "b", "more/b", "more/c", "photo")]
    with Image.open(tmp_path / "out" / "photo_classes.png") as image:
        assert image.size[0] > image.size[1] > 300


def test_a_terminal_gets_a_table_and_a_bar_and_a_glob_and_a_video_are_read(
    classifier: pathlib.Path, folder: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    video = cv2.VideoWriter(str(folder / "clip.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    for shade in range(7):
        video.write(np.full((48, 64, 3), 30 * shade, np.uint8))
    video.release()
    monkeypatch.setenv("FORCE_COLOR", "1")  # how rich is told that this is a terminal
    monkeypatch.setenv("COLUMNS", "200")
    words = ["predict", str(classifier), str(folder / "*.png"), str(folder / "clip.avi"), "--every", "3", "--top", "1"]
    assert main(words) == 0
    table, bar = capsys.readouterr()
    assert "probability" in table
    for name in ("a.png", "photo.png", "clip.avi@00000", "clip.avi@00003", "clip.avi@00006"):
        assert str(folder / name) in table
    assert ".hidden" not in table
    assert "5/5" in bar
    assert main([*words[:3], "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_a_segmentor_writes_labels_and_an_overlay(
    tmp_path: pathlib.Path, picture: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write(tmp_path / "weights", "segmentation")
    words = ["predict", str(tmp_path / "weights"), str(picture), "--save", str(tmp_path / "out")]
    assert main([*words, "--scale", "96", "48", "--json", str(tmp_path / "found.json")]) == 0
    said = capsys.readouterr().out
    with Image.open(tmp_path / "out" / "photo_labels.png") as image:
        assert image.mode == "P"
        labels = np.asarray(image)
        assert image.getpalette()[: 3 * len(NAMES)] == palette(len(NAMES)).ravel().tolist()
    colours = np.asarray(Image.open(picture))
    images = normalize(jnp.asarray(resize_image(colours, (48, 65)))[None], PREPROCESSING.mean, PREPROCESSING.std)
    graph, state = nnx.split(model)
    logits = jax.jit(lambda state, x: nnx.merge(graph, state)(x))(state, images)
    expected = resize_bilinear(resize_bilinear(logits, (48, 65)), (61, 83))[0]
    best = np.sort(np.asarray(expected), axis=-1)
    clear = best[..., -1] - best[..., -2] > 1e-4
    assert clear.mean() > 0.98
    np.testing.assert_array_equal(labels[clear], np.asarray(expected.argmax(axis=-1))[clear])
    overlay = np.asarray(Image.open(tmp_path / "out" / "photo_overlay.png")).astype(int)
    np.testing.assert_allclose(overlay, (colours.astype(int) + palette(len(NAMES))[labels]) / 2, atol=0.51)
    (entry,) = json.loads((tmp_path / "found.json").read_text())["predictions"]
    assert entry["picture"] == str(picture)
    shares = np.bincount(labels.ravel(), minlength=len(NAMES)) / labels.size
    assert {found["class"]: found["share"] for found in entry["classes"]} == {
        name: share for name, share in zip(NAMES, shares, strict=True) if share
    }
    share = 100 * (labels == np.bincount(labels.ravel()).argmax()).mean()
    assert f"{share:5.1f} %  {NAMES[np.bincount(labels.ravel()).argmax()]}" in said


def test_what_cannot_be_predicted(
    tmp_path: pathlib.Path, picture: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(tmp_path / "weights"), str(tmp_path / "none.jpg")]) == 2
    assert "There is no picture" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["predict", str(tmp_path / "weights"), str(tmp_path / "empty")]) == 2
    assert "There is no picture in the folder" in capsys.readouterr().err
    for words in (["--batch-size", "0"], ["--every=0"], ["--scale", "512", "0"], ["--save", str(picture)]):
        assert main(["predict", str(tmp_path / "weights"), str(picture), *words]) == 2
        assert words[0].partition("=")[0] in capsys.readouterr().err
    assert main(["predict", str(tmp_path / "weights"), str(picture), "--top", "0"]) == 2
    assert "--top=0: expected 1 or more" in capsys.readouterr().err


def test_nothing_that_can_be_read(
    classifier: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "damaged.png").write_bytes(b"\x89PNG")
    (tmp_path / "damaged.mp4").write_bytes(b"no video")
    assert main(["predict", str(classifier), str(tmp_path), "--json", str(tmp_path / "found.json")]) == 2
    assert "error: None of the 2 pictures can be read." in capsys.readouterr().err
    assert not (tmp_path / "found.json").exists()


def test_a_workdir_predicts_as_its_run_evaluates(tmp_path: pathlib.Path) -> None:
    write(tmp_path / "weights", "detection")
    weights = read_weights(tmp_path / "weights")
    assert run_settings(tmp_path / "weights", weights) == Settings()
    run = {"detection": {"head": "mask_rcnn", "proposals": 7, "sampling_ratio": 2}, "name": "of another version"}
    run["segmentation"] = {"mode": "slide", "window": [64, 64], "stride": [32, 32]}
    (tmp_path / "config.json").write_text(json.dumps(run))
    own = DensePreprocessing((160, 96), (0.5,) * 3, (0.25,) * 3)
    of_run = dataclasses.replace(weights, provenance={"layout": "workdir"}, preprocessing=own)
    detection = DetectionConfig(proposals=7, sampling_ratio=2)
    segmentation = SegmentationConfig(mode="slide", window=(64, 64), stride=(32, 32))
    settings = run_settings(tmp_path, of_run)
    assert settings == Settings(segmentation, detection)
    predictor = Predictor(of_run, **settings._asdict())
    assert predictor._task is not None
    assert predictor._task.config == detection
    assert (predictor._task.mean, predictor._task.std) == (own.mean, own.std)
    assert predictor._size(300, 400) == (96, 128)
    (tmp_path / "config.json").write_text(json.dumps(run | {"detection": {"proposal": 7}}))
    with pytest.raises(ValueError, match=r"config\.json: .*Did you mean detection\.proposals"):
        run_settings(tmp_path, of_run)


@pytest.mark.slow
def test_a_detector_writes_objects_and_an_overlay(
    tmp_path: pathlib.Path, picture: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "weights", "detection")
    words = ["predict", str(tmp_path / "weights"), str(picture), "--save", str(tmp_path / "out")]
    assert main([*words, "--scale", "96", "64", "--score", "0.5", "--csv", str(tmp_path / "found.csv")]) == 0
    entries = json.loads((tmp_path / "out" / "photo_objects.json").read_text())
    assert entries
    assert [entry["score"] for entry in entries] == sorted((entry["score"] for entry in entries), reverse=True)
    for entry in entries:
        assert entry["class"] in NAMES
        x1, y1, x2, y2 = entry["box"]
        assert 0 <= x1 <= x2 <= 83.01
        assert 0 <= y1 <= y2 <= 61.01
        assert entry["mask"]["size"] == [61, 83]
    shown = sum(entry["score"] > 0.5 for entry in entries)
    rows = list(csv.DictReader((tmp_path / "found.csv").read_text().splitlines()))
    assert [float(row["score"]) for row in rows] == [entry["score"] for entry in entries[:shown]]
    assert [float(row["x2"]) for row in rows] == [entry["box"][2] for entry in entries[:shown]]
    assert f"{shown} of {len(entries)} objects" in capsys.readouterr().out
    with Image.open(tmp_path / "out" / "photo_overlay.png") as image:
        assert image.size == (4 * 83, 4 * 61)  # enlarged, for the text
