"""`rmt benchmark`: that both pipelines are what they are said to be, and what the command says, writes and refuses."""

import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import Image

from rmt_jax.cli import main
from rmt_jax.data import AugmentConfig, DataConfig, RandAugmentConfig, TokenLabelsConfig, TrainLoader
from rmt_jax.data.benchmark import SyntheticSource, input_benchmark
from rmt_jax.data.benchmark_pipelines import Laps, Pipeline
from rmt_jax.data.label_maps import LabelMaps
from rmt_jax.data.order import TrainingOrder

AUGMENT = AugmentConfig(crop_scale=(0.08, 1.0), flip=0.5, rand_augment=RandAugmentConfig(num_ops=2))
RECIPE = DataConfig(name="synthetic", augment=AUGMENT, repeats=3, repeat_replicas=1, num_threads=0)
IMAGES = 6


class Maps(LabelMaps):
    """The same label map for every picture, without a file."""

    def __init__(self):
        pass

    def __getitem__(self, picture_id):
        ids = np.arange(5 * 18 * 18, dtype=np.int16).reshape(5, 18, 18)
        return ids.astype(np.float16), ids


@pytest.fixture(scope="module")
def source():
    return SyntheticSource(4)


def pipeline(source, config, **changes):
    order = TrainingOrder(len(source), IMAGES, seed=3, repeats=config.repeats)
    return Pipeline(source, order, config, **{"seed": 3, "batch_size": IMAGES, "maps": None, "erasing": 0.0} | changes)


@pytest.mark.parametrize(
    "augment", [AUGMENT, AugmentConfig(rotate=10.0, color_jitter=0.4)], ids=["RandAugment", "no crop"]
)
def test_our_stages_make_the_loaders_batch(source, augment):
    config = dataclasses.replace(RECIPE, augment=augment)
    loader = TrainLoader(source, config, batch_size=IMAGES, seed=3)
    *_, expected = loader.batches(0, 3)
    batch = pipeline(source, config).ours(2, Laps())
    assert batch.keys() == expected.keys()
    for key, values in expected.items():
        np.testing.assert_array_equal(batch[key], values)


def test_our_stages_make_the_loaders_batch_of_token_labels(source, monkeypatch):
    monkeypatch.setattr("rmt_jax.data.pipeline._open_label_maps", lambda config, source: Maps())
    config = dataclasses.replace(RECIPE, repeats=1, token_labels=TokenLabelsConfig("maps"))
    (expected,) = TrainLoader(source, config, batch_size=IMAGES, seed=3).batches(0, 1)
    ours = pipeline(source, config, maps=Maps()).ours(0, Laps())
    theirs = pipeline(source, config, maps=Maps()).baseline(0, Laps())
    assert ours.keys() == expected.keys() == theirs.keys()
    for key, values in expected.items():
        np.testing.assert_array_equal(ours[key], values)
        if key != "image":
            np.testing.assert_array_equal(theirs[key], values)


def normalised(images):
    return (images.transpose(0, 3, 1, 2).astype(np.float32) / 255 - np.reshape(RECIPE.mean, (3, 1, 1))) / np.reshape(
        RECIPE.std, (3, 1, 1)
    )


def test_the_baseline_differs_at_the_border_of_the_crop_only(source):
    config = dataclasses.replace(RECIPE, augment=dataclasses.replace(AUGMENT, rand_augment=RandAugmentConfig()))
    ours = normalised(pipeline(source, config).ours(1, Laps())["image"])
    theirs = pipeline(source, config).baseline(1, Laps())["image"]
    assert theirs.shape == (IMAGES, 3, 224, 224)
    assert theirs.dtype == np.float32
    border = 6  # bicubic reaches two input pixels, which a small crop enlarges threefold
    inside = np.s_[..., border:-border, border:-border]
    np.testing.assert_allclose(theirs[inside], ours[inside], atol=1.5 / 255 / min(RECIPE.std))
    assert np.abs(theirs - ours).max() > 2 / 255 / min(RECIPE.std)


def test_the_baseline_with_the_evaluations_crop_has_our_pixels(source):
    config = dataclasses.replace(RECIPE, augment=AugmentConfig(flip=0.5, rand_augment=RandAugmentConfig(num_ops=2)))
    ours = normalised(pipeline(source, config).ours(0, Laps())["image"])
    np.testing.assert_allclose(pipeline(source, config).baseline(0, Laps())["image"], ours, atol=1e-5)


def test_the_baseline_erases_noise_in_one_box(source):
    config = dataclasses.replace(RECIPE, augment=AugmentConfig())
    plain = pipeline(source, config).baseline(0, Laps())["image"]
    erased = pipeline(source, config, erasing=1.0).baseline(0, Laps())["image"]
    for before, after in zip(plain, erased, strict=True):
        rows, columns = np.nonzero((before != after).all(axis=0))
        area = (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        assert len(rows) == area
        assert 0.015 < area / 224**2 < 0.35
        assert abs(after[:, rows, columns].std() - 1) < 0.1


def test_stages_add_up(source):
    result = input_benchmark(source, dataclasses.replace(RECIPE, num_threads=1), erasing=0.25, images=8, blocks=3)
    assert list(result.ours.stages) == ["read", "decode", "crop, resize", "flip", "augment", "to array", "batch"]
    assert list(result.baseline.stages) == [*list(result.ours.stages)[:-1], "normalise", "erase", "batch"]
    for timing in (result.ours, result.baseline):
        # Medians of three, on a machine that has other work: nothing is missing, and nothing is counted twice.
        assert 0.4 < sum(timing.stages.values()) / timing.wall < 2.5
        assert all(value > 0 for value in timing.stages.values())
    assert len(result.ratios) == 3
    assert min(result.ratios) <= result.ratio <= max(result.ratios)
    assert 20_000 < result.image_bytes < 100_000
    assert result.loader_images_per_second > 0


def test_synthetic_pictures_are_jpegs_of_that_size(source):
    example = source[5]
    assert example.image.startswith(b"\xff\xd8\xff")
    with Image.open(io.BytesIO(example.image)) as image:
        assert image.size == (500, 375)
    assert source[1].image != source[5 + 2].image
    assert source[1].image == source[5].image


def test_the_command_measures_and_writes(tmp_path, capsys):
    file = tmp_path / "input.json"
    words = ["--config.data.num_workers=0", "--config.data.num_threads=1", "--block-size=4", "--blocks=1"]
    assert main(["benchmark", "input", "--config=configs/rmt_s.py", "--synthetic", f"--json={file}", *words]) == 0
    said = capsys.readouterr().out
    assert "crop, resize" in said
    assert "0 processes of 1 threads" in said
    content = json.loads(file.read_text())
    assert content["changes"] == words[:2]
    assert content["result"]["images"] == 4
    assert content["result"]["ratio"] == content["result"]["ratios"][0]
    assert content["result"]["baseline"]["stages"]["erase"] > 0
    assert content["result"]["ours"]["cpu"] > 0
    assert content["environment"]["cores"] >= 1
    assert content["environment"]["packages"].keys() == {"numpy", "pillow", "simplejpeg", "grain"}
    assert [path.name for path in tmp_path.iterdir()] == ["input.json"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config=configs/none.py", "--synthetic"], "there is no file configs/none.py"),
        (["--config=configs/rmt_s.py", "--config.data.dir=/nowhere"], "To measure without the data set, give --synth"),
        (["--config=configs/rmt_s.py", "--synthetic", "--config.dat.dir=x"], "Did you mean data?"),
        (["--config=configs/rmt_s.py", "--synthetic", "--picture=3"], "--picture=3"),
        (["--config=configs/rmt_s.py", "--synthetic", "--block-size=0"], "--block-size=0: expected 1 or more"),
        (["--config=configs/rmt_s.py", "--synthetic", "--json=nowhere/x"], "in a directory that exists"),
        (["--config=configs/rmt_s.py:token_label", "--synthetic"], "no label maps of these pictures"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_refusals(words, message, capsys):
    assert main(["benchmark", "input", *words]) == 2
    assert message in capsys.readouterr().err
