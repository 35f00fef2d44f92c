"""Every layout that upstream's files come in, as real files through the command: RMT-nano, which is quick."""

import collections
import pathlib
from collections.abc import Callable

import numpy as np
import pytest
import safetensors.torch
import torch

from rmt_jax.cli import main
from rmt_jax.convert import Weights, read_weights
from rmt_jax.models import variant
from tests.convert.upstream import (
    StateDict,
    detector_state_dict,
    prefixed,
    save,
    state_dict,
    torch_model,
    training_checkpoint,
)

Convert = Callable[..., Weights]

RAW = state_dict("rmt_nano")
EMA = state_dict("rmt_nano", salt="ema ")


@pytest.fixture
def convert(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> Convert:
    """Save content as a file, convert it by the command to a model directory, and read that."""

    def convert(content: object, *options: str, name: str = "checkpoint.pth") -> Weights:
        path = save(tmp_path / name, content)
        assert main(["convert", str(path), str(tmp_path / "model"), *options]) == 0, capsys.readouterr().err
        return read_weights(tmp_path / "model")

    return convert


def assert_holds(weights: Weights, expected: StateDict) -> None:
    """Bit for bit, the entries without weights included."""
    found = weights.to_torch()
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        np.testing.assert_array_equal(found[key], tensor.numpy(), err_msg=key, strict=True)


LAYOUTS = {
    "bare": RAW,
    "model": {"model": RAW},
    "state_dict": {"state_dict": RAW, "epoch": 3},
    "training without EMA": training_checkpoint(RAW, None),
    "module.": prefixed(RAW, "module."),
    "state_dict, module.": {"state_dict": prefixed(RAW, "module.")},
    "encoder.": {"state_dict": prefixed(RAW, "encoder.")},
    "module.encoder.": prefixed(RAW, "module.encoder."),
    "deeper": {"checkpoint": {"model": RAW}, "epoch": 1},
    "another name": {"net": RAW},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_one_set_of_weights(layout: str, convert: Convert) -> None:
    assert_holds(convert(LAYOUTS[layout]), RAW)


@pytest.mark.parametrize("name", ["checkpoint.pt", "RMT best (1).pth", "weights.bin", "noname"])
def test_files_under_any_name(name: str, convert: Convert) -> None:
    assert_holds(convert({"model": RAW}, name=name), RAW)


def test_old_file_format(tmp_path: pathlib.Path) -> None:
    torch.save({"model": RAW}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert_holds(read_weights(tmp_path / "old.pth"), RAW)


@pytest.mark.parametrize(
    "content", [training_checkpoint(RAW, EMA), {"state_dict": RAW, "state_dict_ema": prefixed(EMA, "module.")}]
)
def test_the_moving_average_is_the_default_and_said(
    content: dict[str, object], convert: Convert, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_holds(convert(content), EMA)
    said = " ".join(capsys.readouterr().out.split())
    assert "the moving average (EMA)" in said
    assert "(the default; --weights=raw takes the raw weights)" in said
    assert_holds(convert(content, "--weights=ema", "--force"), EMA)
    weights = convert(content, "--weights=raw", "--force")
    assert_holds(weights, RAW)
    assert weights.provenance["weights"] == "raw"
    assert "default" not in capsys.readouterr().out


def test_safetensors_in_upstreams_names(tmp_path: pathlib.Path) -> None:
    safetensors.torch.save_file(prefixed(RAW, "module."), tmp_path / "model.safetensors")
    assert_holds(read_weights(tmp_path / "model.safetensors"), RAW)
    (tmp_path / "model.safetensors").rename(tmp_path / "renamed.pth")
    assert_holds(read_weights(tmp_path / "renamed.pth"), RAW)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_other_precisions_become_float32(dtype: torch.dtype, suffix: str, tmp_path: pathlib.Path) -> None:
    other = {key: value.to(dtype) if value.is_floating_point() else value for key, value in RAW.items()}
    path = tmp_path / f"model{suffix}"
    (safetensors.torch.save_file if suffix == ".safetensors" else torch.save)(other, path)
    weights = read_weights(path)
    assert {array.dtype for array in weights.arrays.values()} == {np.dtype("float32")}
    expected = {key: value.float() for key, value in other.items() if "Relpos" not in key and value.ndim}
    found = weights.to_torch()
    for key, tensor in expected.items():
        np.testing.assert_array_equal(found[key], tensor.numpy(), err_msg=key)


def test_a_file_without_constants_and_counters_gets_them(tmp_path: pathlib.Path) -> None:
    learned = {key: value for key, value in RAW.items() if "Relpos" not in key and "num_batches" not in key}
    found = read_weights(save(tmp_path / "lean.pth", learned)).to_torch()
    torch_model(variant("rmt_nano")).load_state_dict(
        {key: torch.from_numpy(array) for key, array in found.items()}, strict=True
    )
    np.testing.assert_allclose(found["layers.2.Relpos.decay"], RAW["layers.2.Relpos.decay"], rtol=1e-5)


def test_metadata_of_state_dicts_is_no_hindrance(convert: Convert) -> None:
    """As mmcv saves: an OrderedDict with an attribute of its own, beside what it noted about the run."""
    ordered = collections.OrderedDict(RAW)
    ordered._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]
    meta = {
        "mmcv_version": "1.7.2",
        "CLASSES": ("person", "bicycle"),
        "epoch": 12,
        "iter": 87960,
        "config": "model = {}",
    }
    assert_holds(convert({"meta": meta, "state_dict": ordered}), RAW)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_detector_that_is_none_of_ours(
    prefix: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A Faster R-CNN, which has no masks: the backbone is taken, and what is left out is named."""
    backbone = state_dict("rmt_nano", headless=True, extra_norms=True)
    heads = {
        key: tensor
        for key, tensor in detector_state_dict("rmt_nano", "maskrcnn_s").items()
        if not key.startswith(("backbone.", "roi_head.mask_head."))
    }
    path = save(tmp_path / "latest.pth", {"state_dict": prefixed(prefixed(backbone, "backbone.") | heads, prefix)})
    assert main(["convert", str(path), str(tmp_path / "model.pth")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "layout mmdetection" in said
    assert "model rmt_nano, backbone with norms of its maps" in said
    assert f"left out {len(heads)} entries beside the backbone" in said
    for group in ("neck", "rpn_head", "roi_head.bbox_head"):
        assert f"{group} ({sum(key.startswith(f'{group}.') for key in heads)})" in said
    saved = torch.load(tmp_path / "model.pth", weights_only=True)["model"]
    torch_model(variant("rmt_nano", extra_norms=True), headless=True).load_state_dict(saved, strict=True)
    assert saved.keys() == backbone.keys()
    assert all(torch.equal(saved[key], backbone[key]) for key in backbone)


@pytest.mark.parametrize("norms", [True, False])
def test_bare_backbones(norms: bool, convert: Convert) -> None:
    backbone = state_dict("rmt_nano", headless=True, extra_norms=norms)
    weights = convert({"state_dict": prefixed(backbone, "backbone.")})
    assert (weights.task, weights.config.extra_norms) == ("backbone", norms)
    assert_holds(weights, backbone)
