"""`rmt predict`: what it says and writes of a classifier, a segmentor and a detector."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from rmt_jax.cli import main
from rmt_jax.convert import Preprocessing, Weights, write_weights
from rmt_jax.data.resize import resize_image
from rmt_jax.data.segmentation import palette
from rmt_jax.models import AnyModel, abstract_model, build_model, variant
from rmt_jax.models.arrays import flat_paths, model_arrays
from rmt_jax.ops import resize_bilinear
from rmt_jax.tasks import normalize
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


def test_a_classifier_says_the_likeliest(
    tmp_path: pathlib.Path, picture: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "weights", "classification")
    assert main(["predict", str(tmp_path / "weights"), str(picture), "--top", "5"]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == f"{picture}:"
    shares = [float(line.split("%")[0]) for line in lines]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(100, abs=0.5)
    assert {line.split("%")[1].strip() for line in lines} == set(NAMES)


def test_a_segmentor_writes_labels_and_an_overlay(
    tmp_path: pathlib.Path, picture: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write(tmp_path / "weights", "segmentation")
    words = ["predict", str(tmp_path / "weights"), str(picture), "--output", str(tmp_path / "out")]
    assert main([*words, "--scale", "96", "48"]) == 0
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
    share = 100 * (labels == np.bincount(labels.ravel()).argmax()).mean()
    assert f"{share:5.1f} %  {NAMES[np.bincount(labels.ravel()).argmax()]}" in said


def test_what_cannot_be_predicted(
    tmp_path: pathlib.Path, picture: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(tmp_path / "weights"), str(tmp_path / "none.jpg")]) == 2
    assert "There is no picture" in capsys.readouterr().err
    assert main(["predict", str(tmp_path / "weights"), str(picture), "--top", "0"]) == 2
    assert "--top=0: expected 1 or more" in capsys.readouterr().err


@pytest.mark.slow
def test_a_detector_writes_objects_and_an_overlay(
    tmp_path: pathlib.Path, picture: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "weights", "detection")
    words = ["predict", str(tmp_path / "weights"), str(picture), "--output", str(tmp_path / "out")]
    assert main([*words, "--scale", "96", "64", "--score", "0.5"]) == 0
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
    assert f"{shown} of {len(entries)} objects" in capsys.readouterr().out
    with Image.open(tmp_path / "out" / "photo_overlay.png") as image:
        assert image.size == (4 * 83, 4 * 61)  # enlarged, for the text
