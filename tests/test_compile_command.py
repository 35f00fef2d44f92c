"""`rmt compile`, run as a user runs it."""

import json
import os
import pathlib
import re

import pytest

from rmt_jax.cli import main
from rmt_jax.training.chips import open_topology
from rmt_jax.training.sharding import MeshConfig, make_mesh
from tests.training.conftest import TINY

WORDS = [f"--config.model.architecture.{key}={value}" for key, value in TINY.items()]
DIGITS = ["compile", "--config", "configs/digits.py", *WORDS]


def test_this_machine(capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path) -> None:
    path = tmp_path / "figures.json"
    mesh = ["--config.mesh.fsdp=4", "--config.mesh.min_split=64"]
    assert main([*DIGITS, *mesh, "--batch", "4", "--json", str(path)]) == 0
    out = capsys.readouterr().out
    assert "batch 32, 4 a device" in out
    for part in ("parameters", "optimiser", "EMA", "temporaries", "all-gather", "all-reduce", "Nothing was run."):
        assert part in out
    figures = json.loads(path.read_text())["remat"]["none"]
    assert figures["fits"] is True
    assert figures["state"]["optimiser"] == pytest.approx(2 * figures["state"]["parameters"], rel=1e-3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--topology", "v7:2x2"], "expected GENERATION:SHAPE such as v5e:16x16 with one of v4, v5e, v5p, v6e"),
        (["--topology", "v5e-257"], "or the name of a slice such as v4-32"),
        (["--batch", "0"], "--batch=0: expected 1 or more"),
        (["--find-batch"], "the memory of these devices is not known"),
        (["--slices", "2"], "--slices needs --topology"),
        (["--json", "nowhere/x.json"], "a directory that exists"),
        (["--config.mesh.fsdp=3"], "do not make 8 device"),
        (["--config.modle.name=x"], "Did you mean model?"),
    ],
)
def test_bad_input(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*DIGITS, *words]) == 2
    assert message in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("batch", "words", "code"), [("8", ["--config.mesh.fsdp=4", "--config.mesh.min_split=64"], 0), ("200000", [], 1)]
)
def test_a_tpu_slice_without_a_tpu(
    batch: str, words: list[str], code: int, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "program.txt"
    options = ["--topology", "v5e:2x2", "--batch", batch, "--quick", "--hlo", str(program)]
    assert main([*DIGITS, "--config.model.dtype=bfloat16", *options, *words]) == code
    out = capsys.readouterr().out
    assert "of 15.75 GiB: " + ("fits" if code == 0 else "does not fit") in out
    if code == 0:
        assert "roofline of v5e" in out
        assert re.search(r"all-gather +\d+", out)
        assert "all-gather" in program.read_text()
    else:
        assert "use a smaller batch" in out


@pytest.mark.slow
@pytest.mark.parametrize(("name", "chips"), [("v4-32", 16), ("v5e:4x4", 16), ("v5p-32", 16), ("v6e-16", 16)])
def test_a_device_for_each_chip(name: str, chips: int) -> None:
    chip, devices = open_topology(name)
    assert len(devices) == chips
    assert make_mesh(MeshConfig(-1, 4), devices).shape == {"data": 4, "fsdp": 4}
    assert chip.name == re.split("[:-]", name)[0]


@pytest.mark.slow
def test_slices_and_their_names() -> None:
    chip, devices = open_topology("v5p-16", slices=2)
    assert chip.name == "v5p"
    assert len(devices) == 16
    assert {device.slice_index for device in devices} == {0, 1}
    assert os.environ["TPU_SKIP_MDS_QUERY"]
