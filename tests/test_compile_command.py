"""`rmt compile`, run as a user runs it."""

import json
import os
import pathlib
import re
from unittest import mock

import jax
import pytest

from rmt_jax.cli import main
from rmt_jax.ops import formulations
from rmt_jax.training import ahead
from rmt_jax.training.chips import open_topology
from rmt_jax.training.sharding import MeshConfig, make_mesh
from tests.compilation import QUICK_FORMULATIONS
from tests.training.conftest import TINY
from tests.training.test_ahead import NOTHING

WORDS = [f"--config.model.architecture.{key}={value}" for key, value in TINY.items()]
DIGITS = ["compile", "--config", "configs/digits.py", *WORDS]


@pytest.fixture(autouse=True, scope="module")
def asked_formulations() -> None:
    """None: programs for TPUs are what is tested."""


def test_this_machine(capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path) -> None:
    path = tmp_path / "figures.json"
    mesh = ["--config.mesh.fsdp=4", "--config.mesh.min_split=64"]
    with formulations.asking(**QUICK_FORMULATIONS):
        assert main([*DIGITS, *mesh, "--batch-size", "4", "--json", str(path)]) == 0
    out = capsys.readouterr().out
    assert "batch 32, 4 a device" in out
    for part in ("parameters", "optimiser", "EMA", "temporaries", "all-gather", "all-reduce", "Nothing was run."):
        assert part in out
    figures = json.loads(path.read_text())["remat"]["none"]
    assert figures["fits"] is True
    given = sum(figures["state"].values()) + figures["inputs"]
    assert figures["peak"] == pytest.approx(given + figures["padding"] + figures["temporaries"])
    assert figures["state"]["optimiser"] == pytest.approx(2 * figures["state"]["parameters"], rel=1e-3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--topology", "v7:2x2"], "expected GENERATION:SHAPE such as v5e:16x16 with one of v4, v5e, v5p, v6e"),
        (["--topology", "v5e-257"], "or the name of a slice such as v4-32"),
        (["--batch-size", "0"], "--batch-size=0: expected 1 or more"),
        (["--find-batch"], "the memory of these devices is not known"),
        (["--slices", "2"], "--slices needs --topology"),
        (["--json", "nowhere/x.json"], "a directory that exists"),
        (["--config.mesh.fsdp=3"], "do not make 8 device"),
        (["--topology", "v5e:4x4x4"], "v5e has slices AxB of at most 16x16, such as v5e:4x8"),
        (["--topology", "v6e:8x32"], "v6e has slices AxB of at most 16x16, such as v6e:4x8"),
        (["--topology", "v5p:4x4"], "v5p has slices AxBxC, such as v5p:4x4x8"),
        (["--config.batch_size=255"], "batch_size=255 cannot be divided over 8 device(s). Use 248 or 256."),
        (["--config.batch_size=24", "--config.grad_accum_steps=2"], "x grad_accum_steps=2. Use 16 or 32."),
        (["--config.grad_accum_steps=4", "--batch-size", "6"], "--batch-size=6 cannot be cut into grad_accum_steps=4"),
        (["--config.modle.name=x"], "Did you mean model?"),
    ],
)
def test_bad_input(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*DIGITS, *words]) == 2
    assert message in capsys.readouterr().err.replace("\n", " ")


def test_a_file_that_is_no_recipe(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "recipe.py"
    path.write_text("config = {}\n")
    assert main(["compile", "--config", str(path)]) == 2
    assert f"{path} is no recipe: it has no function get_config" in capsys.readouterr().err


@pytest.mark.parametrize("error", [RuntimeError("Unable to initialize backend 'tpu'"), AssertionError()])
def test_a_machine_without_devices(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What jax raises for JAX_PLATFORMS=tpu and =cuda where there is none."""
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    monkeypatch.setattr(jax, "devices", mock.Mock(side_effect=error))
    assert main(DIGITS) == 2
    message = capsys.readouterr().err
    assert "jax finds no device for JAX_PLATFORMS=tpu" in message
    assert "Unset JAX_PLATFORMS" in message


@pytest.mark.slow
@pytest.mark.parametrize(
    ("batch", "words", "code"), [("8", ["--config.mesh.fsdp=4", "--config.mesh.min_split=64"], 0), ("200000", [], 1)]
)
def test_a_tpu_slice_without_a_tpu(
    batch: str, words: list[str], code: int, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "program.txt"
    options = ["--topology", "v5e:2x2", "--batch-size", batch, "--quick", "--hlo", str(program)]
    assert main([*DIGITS, "--config.model.dtype=bfloat16", *options, *words]) == code
    out = capsys.readouterr().out
    assert "of 15.75 GiB: " + ("fits" if code == 0 else "does not fit") in out
    if code == 0:
        assert "roofline of v5e" in out
        assert re.search(r"all-gather +\d+", out)
        assert "all-gather" in program.read_text()
    else:
        assert "use a smaller batch" in out


def test_a_teacher_is_left_out_with_a_word(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(ahead, "compile_step", lambda *_, **__: (NOTHING, ""))
    assert main(DIGITS) == 0
    assert "distill.teacher" not in capsys.readouterr().out
    assert main([*DIGITS, "--config.distill.teacher=workdir/teacher"]) == 0
    assert "Without the teacher of distill.teacher" in capsys.readouterr().out


@pytest.mark.slow
def test_two_slices(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "figures.json"
    options = ["--topology", "v5e:2x2", "--slices", "2", "--quick", "--json", str(path)]
    assert main([*DIGITS, "--config.mesh.fsdp=2", "--config.mesh.min_split=64", *options]) == 0
    out = capsys.readouterr().out
    assert re.search(r"links [\d.]+ ms, between slices [\d.]+ ms a step: about", out)
    figures = json.loads(path.read_text())["remat"]["none"]
    # At the least the sum of the gradients, of which each device holds a part.
    assert figures["collectives"]["between slices"]["bytes"] >= figures["state"]["parameters"] / 2
    assert figures["peak"] > figures["temporaries"] + sum(figures["state"].values())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v5e:4x4", "v6e:4x4", "v5p:4x4x4"])
@pytest.mark.parametrize("slices", [1, 2])
def test_meshes_that_share_a_side_of_a_slice(name: str, slices: int) -> None:
    _, devices = open_topology(name, slices)
    each = len(devices) // slices
    for fsdp in (2**power for power in range(each.bit_length())):
        mesh = make_mesh(MeshConfig(-1, fsdp), devices)
        assert mesh.shape == {"data": len(devices) // fsdp, "fsdp": fsdp}
        for row in mesh.devices:
            assert len({getattr(device, "slice_index", 0) for device in row}) == 1


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
