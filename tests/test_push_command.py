"""`rmt push`: what goes to the hub, what comes back, and what the model card says."""

import dataclasses
import json
import pathlib
from collections.abc import Iterator

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import constants

from rmt_jax.cli import main
from rmt_jax.convert import Weights, load_pretrained, read_weights
from rmt_jax.convert.model_card import Run, figures, make_card, read_run
from rmt_jax.models import variant
from tests.convert.hub_server import HubServer, serving

WEIGHTS = pathlib.Path(__file__).parent.parent / "notebooks" / "rmt_nano_digits.safetensors"
NAME = "somebody/rmt-nano-digits"

# huggingface_hub 2.4 uploads large files through an argument that its HTTP client calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")


@pytest.fixture
def hub(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with serving(tmp_path, monkeypatch) as server:
        yield server


def assert_same(found: Weights, expected: Weights) -> None:
    assert (found.config, found.class_names, found.preprocessing) == (
        expected.config,
        expected.class_names,
        expected.preprocessing,
    )
    assert found.arrays.keys() == expected.arrays.keys()
    for path, array in expected.arrays.items():
        np.testing.assert_array_equal(found.arrays[path], array)


def test_there_and_back(hub: HubServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(WEIGHTS), NAME, "--private", "--license", "apache-2.0", "--message", "First"]) == 0
    assert f"{hub.address}/{NAME}/commit/" in capsys.readouterr().out
    files = hub.repositories[NAME]["main"]
    assert files.keys() == {"model.safetensors", "config.json", "README.md"}
    assert (hub.messages, hub.private) == (["First"], {NAME})
    assert_same(read_weights(NAME), read_weights(WEIGHTS))
    config = json.loads(files["config.json"])
    assert (config["model"], config["config"]["num_classes"]) == ("rmt_nano", 10)

    # From the cache alone, without a hub.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    load_pretrained(NAME)
    with pytest.raises(FileNotFoundError, match="it is not in the cache"):
        load_pretrained("somebody/else")


def test_a_card_of_the_repository_stays(hub: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    hub.repositories[NAME] = {}
    first = hub.commit(NAME, {"README.md": b"by hand"}, "by hand")
    assert main(["push", str(WEIGHTS), NAME]) == 0
    assert "the repository's own was kept" in capsys.readouterr().out
    assert hub.repositories[NAME]["main"]["README.md"] == b"by hand"
    assert main(["push", str(WEIGHTS), NAME, "--replace-card"]) == 0
    assert hub.repositories[NAME]["main"]["README.md"].startswith(b"---\n")
    with pytest.raises(FileNotFoundError, match=r"it has no such file, which `rmt push` writes"):
        load_pretrained(f"{NAME}@{first}")
    with pytest.raises(FileNotFoundError, match="it has no branch, tag or commit 'v7'"):
        load_pretrained(f"{NAME}@v7")


def test_what_the_hub_refuses(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(WEIGHTS), NAME, "--private"]) == 0
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    with pytest.raises(FileNotFoundError, match="or it is private: then `hf auth login`"):
        load_pretrained(NAME)
    assert main(["push", str(WEIGHTS), "somebody/new"]) == 2
    assert "error: somebody/new: the hub refused (" in capsys.readouterr().err
    monkeypatch.delenv("HF_TOKEN")
    assert main(["push", "nothing", NAME]) == 2
    assert "Nobody is logged in to the hub" in capsys.readouterr().err
    assert main(["push", str(WEIGHTS), "rmt-nano"]) == 2
    assert "expected USER/NAME" in capsys.readouterr().err


def test_a_dry_run_only_writes(
    hub: HubServer, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    words = ["push", str(WEIGHTS), NAME, "--dry-run", str(tmp_path / "look")]
    assert main(words) == 0
    assert "model.safetensors" in capsys.readouterr().out
    assert hub.repositories == {}
    card = huggingface_hub.ModelCard.load(tmp_path / "look" / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("rmt_jax", "image-classification")
    assert card.data.license is None
    assert "No licence of the weights is stated" in card.content
    assert f'rmt_jax.load_pretrained("{NAME}")' in card.content
    assert_same(read_weights(tmp_path / "look" / "model.safetensors"), read_weights(WEIGHTS))
    assert main(words) == 2
    assert "exists: give the name of a new folder" in capsys.readouterr().err


def test_the_card_of_a_run_has_its_recipe_and_its_figures(tmp_path: pathlib.Path) -> None:
    weights = dataclasses.replace(
        read_weights(WEIGHTS), provenance={"layout": "workdir", "source": "digits", "weights": "ema", "step": 40}
    )
    recipe = {
        "epochs": 8,
        "init_from": "/a/place",
        "data": {"name": "digits", "train_split": "train", "dir": "/a/place"},
    }
    (tmp_path / "config.json").write_text(json.dumps(recipe))
    evaluation = {
        "source": "/a/place", "step": 40, "weights": "ema", "data": "digits", "split": "test", "pictures": 360,
        "unreadable": 0, "top1": 96.25, "raw": {"top1": 95.5}, "classes": {"0": {"accuracy": 1.0}},
    }  # fmt: skip
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
    run = read_run(tmp_path, weights)
    assert figures(run) == {"top1": 96.25}
    text = make_card(weights, NAME, run, "apache-2.0")
    card = huggingface_hub.ModelCard(text)
    assert card.data.eval_results is not None
    assert card.data.eval_results[0].metric_value == 96.25
    assert "digits, split test, 360 pictures, with these weights at step 40" in text
    assert "/a/" not in text
    assert '"init_from": "place"' in text
    raw = dataclasses.replace(weights, provenance={**weights.provenance, "weights": "raw"})
    assert figures(read_run(tmp_path, raw)) == {"top1": 95.5}
    later = dataclasses.replace(weights, provenance={**weights.provenance, "step": 60})
    assert figures(read_run(tmp_path, later)) == {}
    assert "Nothing was measured" in make_card(later, NAME, Run(recipe, None), None)


def test_figures_of_the_paper_are_named_as_such() -> None:
    weights = Weights(
        "rmt_t", "classification", variant("rmt_t"), {}, provenance={"layout": "upstream, classification"}
    )
    text = make_card(weights, NAME, None, None)
    assert "The paper gives 82.4 % top-1" in text
    assert "whose repository has no licence at its root" in text
    assert "model-index" not in text
