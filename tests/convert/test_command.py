"""What `rmt convert` says and writes: lists, reports, verification, provenance."""

import csv
import hashlib
import json
import pathlib

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors
import torch

import rmt_jax
from rmt_jax.cli import main
from rmt_jax.convert import load_pretrained, read_weights, verify
from rmt_jax.models import variant
from rmt_jax.models.arrays import flat_paths
from tests.convert.upstream import save, state_dict, torch_model, training_checkpoint

RAW = state_dict("rmt_nano")
EMA = state_dict("rmt_nano", salt="ema ")


@pytest.fixture
def source(tmp_path: pathlib.Path) -> pathlib.Path:
    return save(tmp_path / "RMT-N.pth", training_checkpoint(RAW, EMA))


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """All that was printed, with its white space made single."""
    return " ".join(capsys.readouterr().out.split())


def test_list_describes_every_entry(source: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = set(source.parent.iterdir())
    assert main(["convert", "--list", str(source)]) == 0
    words = said(capsys)
    assert "RMT-N.pth: PyTorch file" in words
    assert "model 176 entries of an RMT, the raw weights; layout: upstream, classification; rmt_nano, 1000" in words
    assert "model_ema 176 entries of an RMT, the moving average (EMA)" in words
    for entry in ("epoch 299", "max_accuracy 84.1", "args Namespace", "optimizer dict of 2"):
        assert entry in words
    assert set(source.parent.iterdir()) == before


def test_list_says_what_would_be_refused(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    incomplete = {key: value for key, value in RAW.items() if not key.startswith("head.")}
    assert main(["convert", "--list", str(save(tmp_path / "x.pth", {"model": incomplete}))]) == 0
    assert "2 problem(s), would be refused" in said(capsys)
    deeper = state_dict("rmt_nano", depths=(1, 1, 3, 1))
    assert main(["convert", "--list", str(save(tmp_path / "y.pth", {"model": deeper}))]) == 0
    assert "not recognised: These weights are of no known model. Nearest is rmt_nano" in said(capsys)
    assert main(["convert", "--list", str(save(tmp_path / "z.pth", {"epoch": 3}))]) == 0
    assert "epoch 3" in said(capsys)


@pytest.mark.parametrize("name", ["model", "model.safetensors", "model.pth"])
def test_the_destination_says_where_it_comes_from(
    name: str, source: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    assert main(["convert", str(source), str(tmp_path / name)]) == 0
    assert digest in said(capsys)
    if name == "model":
        card = json.loads((tmp_path / name / "model.json").read_text())
    elif name.endswith("pth"):
        card = json.loads(torch.load(tmp_path / name, weights_only=True)["rmt_jax"])
    else:
        with safetensors.safe_open(tmp_path / name, framework="numpy") as file:
            card = json.loads(file.metadata()["rmt_jax"])
    assert card["model"] == "rmt_nano"
    assert card["config"]["depths"] == [1, 1, 2, 1]
    provenance = card["provenance"]
    assert provenance["versions"]["rmt_jax"] == rmt_jax.__version__
    assert provenance["versions"]["jax"] == jax.__version__
    expected = {"source": "RMT-N.pth", "sha256": digest, "layout": "upstream, classification", "weights": "ema"}
    assert {key: provenance[key] for key in expected} == expected
    assert provenance["entry"] == "model_ema"

    assert main(["convert", "--list", str(tmp_path / name)]) == 0
    words = said(capsys)
    assert "source RMT-N.pth" in words
    assert "weights the moving average (EMA)" in words
    assert f"jax {jax.__version__}" in words

    assert main(["convert", str(tmp_path / name), str(tmp_path / "again")]) == 0
    again = read_weights(tmp_path / "again").provenance
    assert again["weights"] == "ema"
    assert again["before"]["before"]["sha256"] == digest
    assert main(["convert", str(tmp_path / name), str(tmp_path / "raw"), "--weights=raw"]) == 2


def test_the_same_source_makes_the_same_bytes(source: pathlib.Path, tmp_path: pathlib.Path) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        assert main(["convert", str(source), str(tmp_path / name)]) == 0
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_weights_are_readable_with_orbax_alone(source: pathlib.Path, tmp_path: pathlib.Path) -> None:
    assert main(["convert", str(source), str(tmp_path / "model")]) == 0
    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.restore(tmp_path / "model" / "weights")
    kernel = tree["params"]["backbone"]["layers"]["0"]["blocks"]["0"]["ffn"]["fc1"]["kernel"]
    np.testing.assert_array_equal(kernel, EMA["layers.0.blocks.0.ffn.fc1.weight"].T)
    assert {path.split("/")[-1] for path, _ in flat_paths(tree["batch_stats"])} == {"mean", "var"}


def test_files_have_the_permissions_of_any_other(source: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (tmp_path / "other").touch()
    for name in ("model.pth", "model.safetensors"):
        assert main(["convert", str(source), str(tmp_path / name)]) == 0
        assert (tmp_path / name).stat().st_mode == (tmp_path / "other").stat().st_mode


def rows_of(path: pathlib.Path) -> dict[str, dict[str, str]]:
    with path.open(newline="") as file:
        return {row["source"]: row for row in csv.DictReader(file)}


def test_report_has_every_tensor(source: pathlib.Path, tmp_path: pathlib.Path) -> None:
    report = tmp_path / "report.csv"
    assert main(["convert", str(source), str(tmp_path / "model"), f"--report={report}"]) == 0
    rows = rows_of(report)
    assert rows.keys() == EMA.keys()
    weights = read_weights(tmp_path / "model")
    assert {row["target"] for row in rows.values()} == set(weights.arrays) | set(weights.buffers)
    for key, tensor in EMA.items():
        assert float(rows[key]["mean"]) == pytest.approx(tensor.double().mean().item(), rel=1e-5, abs=1e-6)
        assert float(rows[key]["max"]) == pytest.approx(tensor.double().max().item(), rel=1e-5)
    conv = rows["layers.0.downsample.reduction.weight"]
    assert conv["target"] == "backbone/layers/0/downsample/reduction/kernel"
    assert conv["shape"] == "3x3x24x48"
    assert conv["transform"] == "out in height width -> height width in out"
    assert rows["proj.weight"]["transform"] == "out in -> in out"
    assert rows["proj.bias"]["transform"] == "copy"
    assert rows["layers.0.Relpos.decay"]["transform"] == "constant, checked"
    assert rows["norm.num_batches_tracked"]["transform"] == "counter, kept"

    assert main(["convert", str(tmp_path / "model"), str(tmp_path / "back.pth"), f"--report={report}"]) == 2
    assert main(["convert", str(tmp_path / "model"), str(tmp_path / "back.pth"), f"--report={report}", "--force"]) == 0
    back = rows_of(report)
    assert back["proj/kernel"]["target"] == "proj.weight"
    assert back["proj/kernel"]["transform"] == "in out -> out in"
    assert back["proj/kernel"]["shape"] == "256x128"
    assert main(["convert", str(source), str(tmp_path / "same.safetensors"), f"--report={report}", "--force"]) == 0
    assert {row["transform"] for row in rows_of(report).values()} == {"copy", "constant, checked", "counter, kept"}


def test_report_names_what_was_left_out_and_prints(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    backbone = state_dict("rmt_nano", headless=True, extra_norms=True)
    file = {f"module.backbone.{key}": value for key, value in backbone.items()}
    file |= {"module.neck.lateral_convs.0.conv.bias": torch.zeros(256)}
    source = save(tmp_path / "detector.pth", {"state_dict": file})
    report = tmp_path / "report.csv"
    assert main(["convert", str(source), str(tmp_path / "model"), f"--report={report}"]) == 0
    rows = rows_of(report)
    assert rows.keys() == file.keys()
    assert rows["module.neck.lateral_convs.0.conv.bias"]["transform"] == "left out"
    assert rows["module.backbone.extra_norms.0.weight"]["target"] == "extra_norms/0/scale"
    capsys.readouterr()
    assert main(["convert", str(source), str(tmp_path / "other"), "--report"]) == 0
    assert "extra_norms/0/scale" in capsys.readouterr().out


@pytest.mark.parametrize("headless", [False, True])
def test_verify_compares_with_pytorch(
    headless: bool, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(tmp_path / "x.pth", state_dict("rmt_nano", headless=headless, extra_norms=headless))
    assert main(["convert", str(path), str(tmp_path / "model"), "--verify"]) == 0
    words = said(capsys)
    name = "stride 32" if headless else "logits"
    before, after = (words.partition(f"{name}, {when} ")[2][:40] for when in ("before", "after"))
    assert before == after
    assert before.startswith("mean ")
    assert "before and after identical" in words
    assert "after and PyTorch largest difference" in words
    assert "default precision this platform's is" in words
    assert "result equal within 2e-05" in words


def test_verify_sees_a_difference(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = verify.reference_outputs
    monkeypatch.setattr(
        verify, "reference_outputs", lambda *given: {key: x * 1.001 for key, x in original(*given).items()}
    )
    assert main(["convert", str(save(tmp_path / "x.pth", RAW)), str(tmp_path / "model"), "--verify"]) == 1
    assert "result NOT EQUAL within 2e-05" in said(capsys)


def test_verify_without_the_tests_says_so(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "REFERENCE", tmp_path / "nowhere.py")
    assert main(["convert", str(save(tmp_path / "x.pth", RAW)), str(tmp_path / "model"), "--verify"]) == 0
    assert "PyTorch not compared: the PyTorch model is among the tests" in said(capsys)


@pytest.mark.slow
def test_a_wide_auxiliary_head_is_said_to_be_unverified(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """RMT-S* as released: 1024 inputs. The tap is a field of the configuration, and takes effect."""
    wide = state_dict("rmt_s_star", depths=(3, 4, 18, 4), aux_tap="proj")
    path = save(tmp_path / "RMT-S-star.pth", {"model": wide})
    assert main(["convert", str(path), str(tmp_path / "model")]) == 0
    words = said(capsys)
    assert "rmt_s_star, 1000 classes, 27,992,240 parameters" in words
    assert "aux tap unverified" in words
    assert read_weights(tmp_path / "model").config == variant("rmt_s_star", aux_tap="activation")
    assert main(["convert", str(path), str(tmp_path / "norm"), "--aux-tap=norm"]) == 0
    assert read_weights(tmp_path / "norm").config.aux_tap == "norm"

    images = np.random.default_rng(0).standard_normal((1, 64, 64, 3)).astype(np.float32)
    reference = torch_model(variant("rmt_s_star", aux_tap="norm"))
    reference.load_state_dict(wide, strict=True)
    with torch.no_grad():
        expected = reference(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    found = np.asarray(jax.jit(load_pretrained(tmp_path / "model", aux_tap="norm").__call__)(images))
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())
    other = np.asarray(jax.jit(load_pretrained(tmp_path / "model").__call__)(images))
    assert np.abs(other - expected).max() > 1e-2 * np.abs(expected).max()
