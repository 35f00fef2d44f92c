"""What the summary says about formulations; the rest of it is seen in real runs."""

import importlib.util
import types

import jax
import pytest

from rmt_jax.ops import formulations
from rmt_jax.training.config import parse
from rmt_jax.training.describe import describe_formulations


@pytest.fixture(autouse=True, scope="module")
def asked_formulations() -> None:
    """None: what is said of those of users is tested."""


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("rmt_s", 224, "; no ffn kernel for the maps of stage 1 (56x56x64)"),
        (
            "rmt_s",
            1024,
            "; no retention kernel for the maps of stage 1 (256x256x64), 2 (128x128x128), 4 (32x32x512)"
            "; no ffn kernel for the maps of stage 1 (256x256x64), 2 (128x128x128), 3 (64x64x256), 4 (32x32x512)",
        ),
        (
            "rmt_nano",
            64,
            "; no retention kernel for the maps of stage 1 (16x16x24), 2 (8x8x48)"
            "; no ffn kernel for the maps of stage 1 (16x16x24), 2 (8x8x48), 3 (4x4x96)",
        ),
    ],
)
def test_what_a_tpu_computes_with(name: str, size: int, expected: str) -> None:
    config = parse({"model": {"name": name, "dtype": "bfloat16"}, "data": {"image_size": size}})
    assert describe_formulations(config, "tpu") == formulations.describe("tpu") + expected


@pytest.mark.parametrize(
    ("dtype", "size", "expected"),
    [
        ("bfloat16", 224, ""),
        ("bfloat16", 1280, "; no retention kernel for the maps of stage 1 (320x320x64), 4 (40x40x512)"),
        (
            "float32",
            64,
            "; no retention kernel for the maps of stage 1 (16x16x64), 2 (8x8x128), 3 (4x4x256), 4 (2x2x512)",
        ),
    ],
)
def test_what_a_gpu_computes_with(dtype: str, size: int, expected: str) -> None:
    config = parse({"model": {"name": "rmt_s", "dtype": dtype}, "data": {"image_size": size}})
    assert describe_formulations(config, "gpu") == formulations.describe("gpu") + expected


def test_other_platforms_need_no_kernel() -> None:
    config = parse({"model": {"name": "rmt_nano"}, "data": {"image_size": 1024}})
    assert describe_formulations(config, "cpu") == formulations.describe("cpu")


@pytest.mark.parametrize(("capability", "retention"), [("7.5", "at_once"), ("9.0", "triton"), ("gfx942", "triton")])
def test_gpus_before_ampere_do_without_triton(capability: str, retention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Colab T4 among them, whose Triton has no bfloat16."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [types.SimpleNamespace(compute_capability=capability)])
    assert formulations.chosen("retention", "gpu") == retention
    assert formulations.chosen("depthwise", "gpu") == ("convolution" if retention == "at_once" else "triton")
    assert formulations.chosen("layer_norm", "gpu") == ("plain" if retention == "at_once" else "triton")


def test_a_jax_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert formulations.chosen("retention", "gpu") == "at_once"
    monkeypatch.setenv(formulations.ENVIRONMENT_VARIABLE, "retention=triton")
    assert formulations.chosen("retention", "gpu") == "triton"


def test_dense_tasks_have_maps_of_their_own_sizes() -> None:
    config = parse({"task": "segmentation", "model": {"name": "rmt_s", "dtype": "bfloat16"}, "batch_size": 16})
    assert "; no retention kernel for the maps of stage 1 (128x128x64)" in describe_formulations(config, "tpu")
    masked = {"task": "detection", "model": {"name": "rmt_s", "dtype": "bfloat16"}, "detection": {"head": "retinanet"}}
    words = "; no retention kernel on a masked canvas; no ffn kernel on a masked canvas"
    assert describe_formulations(parse(masked), "tpu").endswith(words)
    plain = describe_formulations(parse(masked | {"detection": {"head": "retinanet", "canvas": "plain"}}), "tpu")
    assert "1 (200x336x64), 2 (100x168x128)" in plain
