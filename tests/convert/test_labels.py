"""Class names and preprocessing go with the weights, through every form of ours."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest

from rmt_jax.cli import main
from rmt_jax.convert import (
    IMAGENET,
    DensePreprocessing,
    Preprocessing,
    Weights,
    class_differences,
    name_some,
    read_weights,
    run_preprocessing,
    write_weights,
)
from rmt_jax.convert.card import read_card
from rmt_jax.convert.preprocessing import DENSE_SCALES, upstream_preprocessing
from rmt_jax.data import DetectionDataConfig, SegmentationDataConfig
from rmt_jax.models import variant
from tests.convert.upstream import save, state_dict

NAMES = tuple(f"class {label} \N{GREEK SMALL LETTER ALPHA}" for label in range(7))
PREPROCESSING = Preprocessing(32, 1.0, "bilinear", (0.1, 0.2, 0.3), (0.5, 0.25, 0.125))


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    folder = tmp_path_factory.mktemp("upstream")
    found = read_weights(save(folder / "x.pth", {"model": state_dict("rmt_nano", num_classes=7)}))
    assert (found.class_names, found.preprocessing) == (None, IMAGENET)
    return dataclasses.replace(found, class_names=NAMES, preprocessing=PREPROCESSING)


@pytest.mark.parametrize("form", ["directory", "file.safetensors", "file.pth"])
def test_every_form_carries_them(
    form: str, known: Weights, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_weights(known, tmp_path / form)
    for again in ("again", "again.safetensors", "again.pth"):
        assert main(["convert", str(tmp_path / form), str(tmp_path / again)]) == 0
        found = read_weights(tmp_path / again)
        assert (found.class_names, found.preprocessing) == (NAMES, PREPROCESSING)
    capsys.readouterr()
    assert main(["convert", "--list", str(tmp_path / form)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"classes 7: {', '.join(NAMES[:5])}, ... " in said
    assert "pictures 32x32, crop ratio 1, bilinear, mean (0.1, 0.2, 0.3)" in said


def test_another_model_name_keeps_them(known: Weights, tmp_path: pathlib.Path) -> None:
    write_weights(known, tmp_path / "file.safetensors")
    found = read_weights(tmp_path / "file.safetensors", model="rmt_nano")
    assert (found.class_names, found.preprocessing) == (NAMES, PREPROCESSING)


def test_a_card_without_them(known: Weights) -> None:
    card = json.loads(json.dumps(known.card()))
    assert read_card(card, "x").class_names == NAMES
    del card["class_names"], card["preprocessing"]
    found = read_card(card, "x")
    assert (found.class_names, found.preprocessing) == (None, None)


@pytest.mark.parametrize(
    "change",
    [
        {"class_names": "abc"},
        {"class_names": [1, 2]},
        {"preprocessing": []},
        {"preprocessing": {"image_size": 224}},
        {"preprocessing": dataclasses.asdict(IMAGENET) | {"image_size": 224.5}},
        {"preprocessing": dataclasses.asdict(IMAGENET) | {"mean": [0.5, 0.5]}},
    ],
)
def test_damaged_cards(change: dict[str, object], known: Weights) -> None:
    with pytest.raises(ValueError, match="x does not describe a model"):
        read_card(known.card() | change, "x")


def test_class_names_are_as_many_as_classes(known: Weights) -> None:
    with pytest.raises(ValueError, match="3 class names do not go with a head of 7 classes"):
        dataclasses.replace(known, class_names=NAMES[:3])


def test_preprocessing_of_upstreams() -> None:
    plain = upstream_preprocessing("classification", variant("rmt_s"))
    assert plain == Preprocessing(224, 0.875, "bicubic", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    starred = upstream_preprocessing("classification", variant("rmt_s_star"))
    assert starred == dataclasses.replace(plain, crop_ratio=0.96)
    assert upstream_preprocessing("backbone", variant("rmt_s")) is None


def test_differences_of_classes() -> None:
    assert class_differences(("a", "b"), ("a", "c")) == ["class 1 is 'b' there, 'c' here"]
    for there, here in ((None, ("a",)), (("a",), None), (("a",), ("a", "b")), (("a",), ("a",))):
        assert class_differences(there, here) == []
    assert name_some(list("abc"), 2) == "a; b; ... (3 in all)"
    assert name_some(list("ab"), 2) == "a; b"


def test_arrays_are_untouched(known: Weights, tmp_path: pathlib.Path) -> None:
    write_weights(known, tmp_path / "directory")
    for path, array in read_weights(tmp_path / "directory").arrays.items():
        np.testing.assert_array_equal(array, known.arrays[path])


def test_pictures_of_dense_tasks_are_resized_whole(known: Weights, tmp_path: pathlib.Path) -> None:
    own = DensePreprocessing((160, 96), (0.1, 0.2, 0.3), (0.5, 0.25, 0.125))
    found = read_card(json.loads(json.dumps(dataclasses.replace(known, preprocessing=own).card())), "x")
    assert found.preprocessing == own
    assert dataclasses.replace(known, preprocessing=own).cropping == dataclasses.replace(
        IMAGENET, mean=own.mean, std=own.std
    )
    assert str(own) == "whole, within 160x96, mean (0.1, 0.2, 0.3), std (0.5, 0.25, 0.125)"
    upstream = upstream_preprocessing("detection", variant("rmt_s"))
    assert upstream == DensePreprocessing((1333, 800), IMAGENET.mean, IMAGENET.std)
    assert {  # of the recipes' evaluation, which convert does not import
        "segmentation": SegmentationDataConfig().scale,
        "detection": DetectionDataConfig().eval_scale,
    } == DENSE_SCALES
    run = {"mean": [0.5] * 3, "std": [0.25] * 3, "segmentation": {"scale": [384, 96]}}
    assert run_preprocessing(run, "segmentation") == DensePreprocessing((384, 96), (0.5,) * 3, (0.25,) * 3)
    with pytest.raises(ValueError, match="scale must be two whole numbers, got 7"):
        read_card(json.loads(json.dumps(known.card() | {"preprocessing": {"scale": 7}})), "x")
