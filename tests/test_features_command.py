"""`rmt features`: what it writes of a classifier and of a backbone, and what it refuses."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from rmt_jax.cli import main
from rmt_jax.convert import IMAGENET, Weights, read_weights, write_weights
from rmt_jax.models import Classifier
from rmt_jax.tasks import normalize
from rmt_jax.training.features import FeatureExtractor
from rmt_jax.training.prediction import prepare
from tests.test_predict_command import PREPROCESSING, write


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Weights of a classifier, as a model directory. Not to be changed."""
    path = tmp_path_factory.mktemp("weights") / "classifier"
    write(path, "classification")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Three pictures, one of them below, and one that is damaged. Not to be changed."""
    top = tmp_path_factory.mktemp("photos")
    (top / "more").mkdir()
    rng = np.random.default_rng(0)
    for name in ("a.png", "c.png", "more/d.png"):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(top / name)
    (top / "b.png").write_bytes(b"nothing")
    return top


def test_features_are_what_the_head_reads(
    classifier: pathlib.Path, folder: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "photos.npz"
    assert main(["features", str(classifier), str(folder), "--output", str(output), "--batch-size", "2"]) == 1
    said, messages = capsys.readouterr()
    assert f"{output}: features [3, 12] of rmt_nano, 5 classes" in said
    assert "b.png" in messages
    assert "1 of 4 pictures could not be read." in messages
    assert [path.name for path in tmp_path.iterdir()] == ["photos.npz"]
    file = np.load(output)
    names = [str(folder / name) for name in ("a.png", "c.png", "more/d.png")]
    assert file["names"].tolist() == names
    assert file["features"].dtype == np.float32
    weights = read_weights(classifier)
    pixels = np.stack([prepare(Image.open(name).convert("RGB"), PREPROCESSING) for name in names])
    graph, state = nnx.split(weights.to_model())

    @jax.jit
    def both(state: nnx.State, pixels: jax.Array) -> tuple[jax.Array, jax.Array]:
        model = nnx.merge(graph, state)
        assert isinstance(model, Classifier)
        images = normalize(pixels, PREPROCESSING.mean, PREPROCESSING.std)
        return model.head(jnp.asarray(file["features"])), model(images)

    logits, expected = map(np.asarray, both(state, jnp.asarray(pixels)))
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_maps_of_a_backbone_without_head(
    classifier: pathlib.Path, folder: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of_classifier = read_weights(classifier)
    inside = {path: array for path, array in of_classifier.arrays.items() if path.startswith("backbone/")}
    arrays = {path.removeprefix("backbone/"): array for path, array in inside.items()}
    weights = Weights("rmt_nano", "backbone", of_classifier.config, arrays)
    write_weights(weights, tmp_path / "backbone")
    output = tmp_path / "maps.npz"
    words = ["features", str(tmp_path / "backbone"), str(folder / "a.png"), "--output", str(output), "--maps", "4", "2"]
    assert main([*words, "--quiet"]) == 0
    assert capsys.readouterr().err == ""
    file = np.load(output)
    assert set(file) == {"names", "stage2", "stage4"}
    side = IMAGENET.image_size  # since the weights do not say
    assert [file[name].shape[1:3] for name in ("stage2", "stage4")] == [(side // 8,) * 2, (side // 32,) * 2]
    picture = Image.open(folder / "a.png").convert("RGB")
    pooled = FeatureExtractor(weights)([picture])["features"]
    np.testing.assert_allclose(pooled, file["stage4"].mean(axis=(1, 2)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output", "photos.txt"], "ends in .npz"),
        (["--output", "nowhere/photos.npz"], "in a directory that exists"),
        (["--output", "photos.npz", "--batch-size=0"], "--batch-size=0: expected 1 or more"),
    ],
)
def test_refusals(
    words: list[str], message: str, folder: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["features", "weights", str(folder), *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("stages", [["5"], ["1", "cat.jpg"]])
def test_stages_that_there_are(stages: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["features", "weights", "cat.jpg", "--output", "x.npz", "--maps", *stages])
    assert "expected stages from 1 to 4" in capsys.readouterr().err


def test_from_python(classifier: pathlib.Path) -> None:
    with pytest.raises(ValueError, match=r"stages \[0\]: there are 1, 2, 3, 4"):
        FeatureExtractor(read_weights(classifier), stages=(0, 1))
    with pytest.raises(ValueError, match="There are no pictures"):
        FeatureExtractor(read_weights(classifier))([])
