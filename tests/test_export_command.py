"""`rmt export`: files that other programs run, compared with the model."""

import importlib.util
import json
import pathlib
import sys
from typing import Any

import numpy as np
import onnx
import pytest
from flax import nnx

from rmt_jax.cli import main
from rmt_jax.convert import Weights, write_weights
from rmt_jax.export import Settings, check, check_destination, check_file, write_onnx
from rmt_jax.models import create_model
from rmt_jax.models.arrays import flat_paths, model_arrays
from rmt_jax.ops import manhattan
from tests.models.small import small

DIGITS = pathlib.Path(__file__).parent.parent / "notebooks" / "rmt_nano_digits.safetensors"


def weights_of(name: str, **options: Any) -> Weights:
    """Of a small model that keeps the flags of the named one."""
    model = small(name, **options)
    arrays = {path: np.asarray(array) for path, array in flat_paths(model_arrays(model))}
    return Weights(name, options.get("task", "classification"), model.config, arrays, head=options.get("head"))


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())


def test_an_onnx_of_trained_weights(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, report = tmp_path / "digits.onnx", tmp_path / "report.json"
    words = ["export", str(DIGITS), str(path), "--image-size", "32", "--pixels", "--json", str(report)]
    assert main(words) == 0
    output = said(capsys)
    assert "takes images uint8 [batch 32 32 3]: RGB, 0 to 255" in output
    assert "Equal to the model in float32 within 2e-05" in output
    assert [entry["batch"] for entry in json.loads(report.read_text())["checks"]] == [1, 4]
    described = json.loads((tmp_path / "digits.onnx.json").read_text())
    assert (described["model"], described["outputs"][0]["shape"]) == ("rmt_nano", ["batch", 10])
    model = onnx.load(path)
    assert json.loads(model.metadata_props[0].value) == described
    assert main(words) == 2
    assert "exists: give another name, or --force" in capsys.readouterr().err


@pytest.mark.slow
def test_int8_is_smaller_and_close(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, report = tmp_path / "digits.onnx", tmp_path / "report.json"
    words = ["export", str(DIGITS), str(path), "--image-size", "32", "--json", str(report)]
    assert main(words) == 0
    size = path.stat().st_size
    monkeypatch.setattr(check, "INT8_BOUND", 1e-6)
    assert main([*words, "--int8", "--force"]) == 1
    assert "NOT EQUAL to the model in float32 within 1e-06" in said(capsys)
    assert path.stat().st_size < 0.6 * size
    assert max(entry["difference"] for entry in json.loads(report.read_text())["checks"]) < 0.1


def test_a_stablehlo_in_a_process_that_has_jax_alone(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "small.stablehlo"
    write_weights(weights_of("rmt_nano", num_classes=10), tmp_path / "weights")
    words = ["--image-size", "32", "48", "--dtype", "bfloat16", "--batch-size", "2"]
    assert main(["export", str(tmp_path / "weights"), str(path), *words]) == 0
    assert "takes images float32 [2 32 48 3]" in said(capsys)
    described = json.loads((tmp_path / "small.stablehlo.json").read_text())
    assert described["platforms"] == ["cpu", "tpu", "cuda"]
    assert described["outputs"][0]["shape"] == [2, 10]


def test_a_wrong_file_is_found_out(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "x.onnx"
    program = write_onnx(weights_of("rmt_nano"), Settings((32, 32)), path)
    model = onnx.load(path)
    largest = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    largest.CopyFrom(onnx.numpy_helper.from_array(1.01 * onnx.numpy_helper.to_array(largest), largest.name))
    onnx.save(model, path)
    assert max(check.difference for check in check_file(path, program)) > 1e-4


@pytest.mark.parametrize(
    ("name", "options", "settings"),
    [
        ("rmt_t", {}, Settings((64, 32))),
        pytest.param("rmt_b", {}, Settings((70, 45), batch_size=2), marks=pytest.mark.slow),
        ("rmt_s_star", {}, Settings((64, 64))),
        pytest.param("rmt_nano", {"task": "backbone"}, Settings((64, 96)), marks=pytest.mark.slow),
        ("rmt_nano", {"task": "segmentation", "head": "semantic_fpn"}, Settings((70, 64))),
        ("rmt_nano", {"task": "detection", "head": "retinanet"}, Settings((64, 64), backbone=True)),
        pytest.param(
            "rmt_nano", {"task": "segmentation", "head": "upernet"}, Settings((64, 64)), marks=pytest.mark.slow
        ),
    ],
)
def test_every_kind_as_onnx(name: str, options: dict[str, Any], settings: Settings, tmp_path: pathlib.Path) -> None:
    program = write_onnx(weights_of(name, **options), settings, tmp_path / "x.onnx")
    checks = check_file(tmp_path / "x.onnx", program)
    assert len(checks) == len(program.outputs) * (2 if settings.batch_size is None else 1)
    assert max(check.difference for check in checks) < 2e-5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["x.tflite"], "give a name that ends in .stablehlo or .onnx"),
        (["nowhere/x.onnx"], "there is no directory"),
        (["x.onnx", "--image-size", "16"], "the models take 32 pixels or more"),
        (["x.onnx", "--image-size", "1", "2", "3"], "give one side, or height and width"),
        (["x.onnx", "--batch-size", "0"], "expected 1 or more"),
        (["x.onnx", "--dtype", "bfloat16"], "onnxruntime lacks most operations in it"),
        (["x.onnx", "--platforms", "tpu"], "--platforms is of .stablehlo"),
        (["x.stablehlo", "--int8"], "--int8 is of .onnx"),
        (["x.stablehlo", "--platforms", "cpu", "gpu"], "--platforms gpu: expected any of cpu, tpu, cuda"),
    ],
)
def test_refusals(words: list[str], message: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(DIGITS), str(tmp_path / words[0]), *words[1:]]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_has_no_form(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_weights(weights_of("rmt_nano", task="detection", head="retinanet"), tmp_path / "detector")
    assert main(["export", str(tmp_path / "detector"), str(tmp_path / "x.onnx")]) == 2
    assert "--backbone exports its backbone" in capsys.readouterr().err
    monkeypatch.setattr(manhattan, "MOST_LOGITS", 1)  # retention of large maps, in a loop
    with pytest.raises(ValueError, match=r"JAX's operation 'scan' .* a name that ends in \.stablehlo takes every size"):
        write_onnx(weights_of("rmt_t"), Settings((64, 64)), tmp_path / "x.onnx")
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert main(["export", str(DIGITS), str(tmp_path / "x.onnx")]) == 2
    assert "pip install 'rmt-jax[export]'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_whole_model_at_its_own_size(tmp_path: pathlib.Path) -> None:
    model = create_model("rmt_t", rngs=nnx.Rngs(0))
    arrays = {path: np.asarray(array) for path, array in flat_paths(model_arrays(model))}
    program = write_onnx(Weights("rmt_t", "classification", model.config, arrays), Settings(), tmp_path / "x.onnx")
    assert program.images.shape[1:] == (224, 224, 3)
    assert max(check.difference for check in check_file(tmp_path / "x.onnx", program)) < 2e-5


@pytest.mark.parametrize(("name", "package"), [("x.onnx", "onnxruntime"), ("x.stablehlo", "flatbuffers")])
def test_a_missing_package_is_named(
    name: str, package: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda wanted: None if wanted == package else find(wanted))
    with pytest.raises(ImportError, match=rf"{name} needs {package}: pip install 'rmt-jax\[export\]'"):
        check_destination(tmp_path / name, Settings(), int8=False, platforms=None, force=False)
