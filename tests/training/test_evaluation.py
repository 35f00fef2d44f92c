"""Evaluation without training: what it opens, says and writes, and whose classes it accepts."""

import json
import pathlib

import jax
import numpy as np
import pytest
from flax import nnx

from rmt_jax.convert import Preprocessing, Weights, write_weights
from rmt_jax.models import Classifier
from rmt_jax.models.arrays import flat_paths, model_arrays
from rmt_jax.tasks.accuracy import TopK
from rmt_jax.training import classification, eval_setup, run, setup
from rmt_jax.training.classification import lowest_classes
from rmt_jax.training.command_line import load_config
from rmt_jax.training.config import parse

DIGITS = tuple(str(digit) for digit in range(10))
PREPROCESSING = Preprocessing(32, 0.5, "bicubic", (0.5,) * 3, (0.5,) * 3)


def write_source(words: list[str], path: pathlib.Path, class_names: tuple[str, ...] | None) -> str:
    """Fresh weights of the tiny model as a model directory; returns the word that starts from them."""
    config = parse(load_config("configs/digits.py", words)).model.resolve(10)
    arrays = {name: np.asarray(leaf) for name, leaf in flat_paths(model_arrays(Classifier(config, rngs=nnx.Rngs(1))))}
    provenance = {"weights": "ema"}
    weights = Weights(
        "rmt_nano", "classification", config, arrays, {}, provenance,
        class_names=class_names, preprocessing=PREPROCESSING,
    )  # fmt: skip
    write_weights(weights, path)
    return f"--config.init_from={path}"


def test_evaluation_opens_one_split_and_writes_what_it_found(
    words: list[str],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    opened, original = [], classification.open_source
    monkeypatch.setattr(classification, "open_source", lambda *given: opened.append(given[1]) or original(*given))
    source = write_source(words, tmp_path / "weights", DIGITS)
    workdir = tmp_path / "deep" / "run"
    assert run("configs/digits.py", [*words, source], workdir=str(workdir), mode="eval") == 0
    assert opened == ["test"]
    said = " ".join(capsys.readouterr().out.split())
    assert "init_from, EMA" in said
    assert "raw" not in said.replace("draws", "")
    assert "Classes with the lowest top-1" in said
    assert "crop ratio 0.5, bicubic" in said  # of the weights, and the evaluation had another
    written = ["confusion.npz", "confusion.png", "evaluation.json", "predictions.png"]
    assert sorted(path.name for path in workdir.iterdir()) == written
    found = json.loads((workdir / "evaluation.json").read_text())
    assert found["source"] == str(tmp_path / "weights")
    assert (found["step"], found["weights"], found["raw"]) == (None, "ema", None)
    assert (found["data"], found["split"], found["pictures"]) == ("digits", "test", 360)
    assert list(found["classes"]) == list(DIGITS)
    assert {entry["count"] for entry in found["classes"].values()} == {36}
    mean = np.mean([entry["accuracy"] for entry in found["classes"].values()])
    assert found["top1"] == pytest.approx(mean) == pytest.approx(found["mean_per_class_accuracy"])


OTHERS = ("zero", "one", *DIGITS[2:])


def test_weights_of_other_classes_are_not_evaluated(
    words: list[str], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_source(words, tmp_path / "weights", OTHERS)
    assert run("configs/digits.py", [*words, source], workdir=str(tmp_path / "run"), mode="eval") == 2
    error = capsys.readouterr().err
    assert "class 0 is 'zero' there, '0' here; class 1 is 'one' there, '1' here. " in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("names", [OTHERS, DIGITS, None], ids=["others", "the same", "unknown"])
def test_a_head_for_other_classes_is_not_taken_over(
    names: tuple[str, ...] | None, words: list[str], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*words, write_source(words, tmp_path / "weights", names)]
    config = parse(load_config("configs/digits.py", words))
    state = setup.initial_state(setup.prepare(config))
    given = Classifier(config.model.resolve(10), rngs=nnx.Rngs(1))
    same = np.array_equal(state["params"]["head"]["kernel"], given.head.kernel[...])
    said = " ".join(capsys.readouterr().out.split())
    assert same == (names != OTHERS)
    assert ("trained on other classes, class 0 is 'zero' there" in said) == (names == OTHERS)
    np.testing.assert_array_equal(state["params"]["proj"]["kernel"], given.proj.kernel[...])


def metric(confusion: list[list[int]]) -> TopK:
    found = TopK(len(confusion))
    found.confusion[...] = confusion
    found.class_counts[...] = found.confusion.sum(axis=1)
    return found


def test_lowest_classes_say_what_they_are_taken_for() -> None:
    found = lowest_classes(metric([[3, 0, 1], [0, 0, 0], [0, 2, 2]]), ["a", "b", "c"])
    assert found == {
        "c": "50.00 % of 4 pictures, 2 taken for 'b'",
        "a": "75.00 % of 4 pictures, 1 taken for 'c'",
    }  # b has no picture
    assert list(found) == ["c", "a"]
    assert len(lowest_classes(metric(np.eye(9, dtype=int).tolist()), list("abcdefghi"))) == 5


def test_the_weights_are_where_the_mesh_wants_them(words: list[str], tmp_path: pathlib.Path) -> None:
    config = parse(load_config("configs/digits.py", [*words, "--config.mesh.fsdp=2", "--config.mesh.min_split=64"]))
    prepared = eval_setup.prepare_evaluation(config)
    given = Classifier(config.model.resolve(10), rngs=nnx.Rngs(1))
    arrays = {name: np.asarray(leaf) for name, leaf in flat_paths(model_arrays(given))}
    placed = prepared.place(Weights("rmt_nano", "classification", given.config, arrays), "x")
    shardings = [jax.tree.map(lambda leaf: leaf.sharding, tree) for tree in (placed, prepared.abstract_weights)]
    assert shardings[0] == shardings[1]
    assert not placed["params"]["proj"]["kernel"].sharding.is_fully_replicated
