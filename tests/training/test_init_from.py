"""init_from: weights of every kind start a run or are evaluated, in every config."""

import pathlib
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from rmt_jax.cli import main
from rmt_jax.models.arrays import flat_paths
from rmt_jax.training import run
from rmt_jax.training.command_line import load_config
from rmt_jax.training.config import parse
from rmt_jax.training.setup import initial_state, prepare
from tests.convert.upstream import StateDict, save, state_dict

# configs/digits.py trains rmt_nano, which is converted whole in a second.
FEW = ["--config.batch_size=256", "--config.epochs=1"]


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pathlib.Path]:
    """Upstream's file of a classifier and of a detector, and what the command makes of them."""
    folder = tmp_path_factory.mktemp("weights")
    backbone = state_dict("rmt_nano", headless=True, extra_norms=True, salt="detector ")
    paths = {
        "file": save(folder / "RMT-N.pth", {"model": state_dict("rmt_nano", num_classes=10)}),
        "detector": save(folder / "detector.pth", {"state_dict": {f"backbone.{k}": v for k, v in backbone.items()}}),
        "1000 classes": save(folder / "large.pth", {"model": state_dict("rmt_nano")}),
    }
    for name, destination in {"directory": folder / "directory", "safetensors": folder / "x.safetensors"}.items():
        assert main(["convert", str(paths["file"]), str(destination)]) == 0
        paths[name] = destination
    return paths


def initial_params(config: str, words: list[str]) -> dict[str, np.ndarray]:
    """Parameters at step 0, by path."""
    state = initial_state(prepare(parse(load_config(config, words))))
    for part in ("params", "batch_stats"):  # the moving average starts there, too
        jax.tree.map(np.testing.assert_array_equal, state["ema"][part], state[part])
    return {path: np.asarray(leaf) for path, leaf in flat_paths(state["params"])}


def assert_backbone(params: dict[str, np.ndarray], expected: StateDict) -> None:
    np.testing.assert_array_equal(
        params["backbone/patch_embed/proj/0/kernel"],
        expected["patch_embed.proj.0.weight"].numpy().transpose(2, 3, 1, 0),
    )
    last = "layers.3.blocks.0.ffn.fc2.weight"
    np.testing.assert_array_equal(params["backbone/layers/3/blocks/0/ffn/fc2/kernel"], expected[last].numpy().T)


@pytest.mark.parametrize("form", ["file", "directory", "safetensors"])
def test_a_run_starts_from_converted_weights(
    form: str, nano: dict[str, pathlib.Path], digits_dir: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*FEW, f"--config.data.dir={digits_dir}", f"--config.init_from={nano[form]}"]
    params = initial_params("configs/digits.py", words)
    expected = state_dict("rmt_nano", num_classes=10)
    assert_backbone(params, expected)
    np.testing.assert_array_equal(params["head/kernel"], expected["head.weight"].numpy().T)
    said = " ".join(capsys.readouterr().out.split())
    assert "rmt_nano, 10 classes, 536,798 parameters, the raw weights" in said
    assert "fresh" not in said


def test_a_head_that_does_not_fit_is_fresh_and_named(
    nano: dict[str, pathlib.Path], digits_dir: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*FEW, f"--config.data.dir={digits_dir}", f"--config.init_from={nano['1000 classes']}"]
    params = initial_params("configs/digits.py", words)
    assert params["head/kernel"].shape == (256, 10)
    np.testing.assert_array_equal(params["proj/bias"], state_dict("rmt_nano")["proj.bias"])
    said = " ".join(capsys.readouterr().out.split())
    assert "fresh: head/bias, head/kernel; not used: head/bias, head/kernel" in said


def test_of_a_detector_the_backbone_is_taken(
    nano: dict[str, pathlib.Path], digits_dir: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*FEW, f"--config.data.dir={digits_dir}", f"--config.init_from={nano['detector']}"]
    params = initial_params("configs/digits.py", words)
    assert_backbone(params, state_dict("rmt_nano", headless=True, extra_norms=True, salt="detector "))
    said = " ".join(capsys.readouterr().out.split())
    fresh, _, unused = said.partition("; not used: ")
    assert all(f"{layer}/" in fresh for layer in ("head", "proj", "norm"))
    assert "backbone/extra_norms/0/bias" in unused


def test_converted_weights_are_evaluated(
    nano: dict[str, pathlib.Path], digits_dir: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*FEW, f"--config.data.dir={digits_dir}", f"--config.init_from={nano['directory']}"]
    assert run("configs/digits.py", words, workdir=str(tmp_path / "run"), mode="eval") == 0
    said = capsys.readouterr().out
    assert "init_from, raw" in said
    assert "EMA" not in said  # one row: there is one set of weights
    assert "training data" not in said


@pytest.mark.parametrize(
    ("source", "message"),
    [("nowhere.pth", "nowhere.pth: no such file or directory"), ("README.md", "no PyTorch file, or a damaged one")],
)
def test_what_is_no_weights_is_refused_before_work(
    source: str, message: str, digits_dir: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*FEW, f"--config.data.dir={digits_dir}", f"--config.init_from={source}"]
    assert run("configs/digits.py", words, workdir=str(tmp_path / "run")) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_another_backbone_is_refused(
    nano: dict[str, pathlib.Path], digits_dir: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deeper = "--config.model.architecture.depths=(1,1,3,1)"
    words = [*FEW, deeper, f"--config.data.dir={digits_dir}", f"--config.init_from={nano['file']}"]
    assert run("configs/digits.py", words, workdir=str(tmp_path / "run")) == 2
    error = capsys.readouterr().err
    assert "is of another model (rmt_nano)" in error
    assert "depths: (1, 1, 2, 1) there, (1, 1, 3, 1) here" in error


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rmt_t", "rmt_s", "rmt_l"])  # B is L with smaller numbers
def test_every_imagenet_config_starts_from_upstreams_file(name: str, tmp_path: pathlib.Path) -> None:
    """Two classes of pictures; upstream's head has a thousand."""
    for split in ("train", "val"):
        for label in ("cat", "dog"):
            (tmp_path / split / label).mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (40, 40)).save(tmp_path / split / label / f"{i}.png")
    expected = state_dict(name)
    words = [
        "--config.data.name=folder",
        f"--config.data.dir={tmp_path}",
        "--config.data.eval_split=val",
        "--config.batch_size=8",
        "--config.mix.group=8",
        "--config.data.repeats=1",
        # Split over the virtual devices: eight whole copies of RMT-L's state would take 12 GB.
        "--config.mesh.data=1",
        "--config.mesh.fsdp=8",
        f"--config.init_from={save(tmp_path / 'x.pth', expected)}",
    ]
    params = initial_params(f"configs/{name}.py", words)
    assert_backbone(params, expected)
    np.testing.assert_array_equal(params["proj/kernel"], expected["proj.weight"].numpy().T)
    assert params["head/kernel"].shape == (1024, 2)
    shutil.rmtree(tmp_path)
