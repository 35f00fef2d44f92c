"""Segmentors from mmseg's files and back, through the command: RMT-nano, which is quick."""

import json
import logging
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import rmt_jax
from rmt_jax.cli import main
from rmt_jax.convert import Weights, from_torch, load_into, load_pretrained, read_weights, to_torch, torch_key
from rmt_jax.models import Segmentor, variant
from rmt_jax.models.arrays import flat_paths, model_arrays
from rmt_jax.training.checkpoint import Checkpoints
from rmt_jax.training.command_line import load_config
from rmt_jax.training.config import parse
from rmt_jax.training.state import split_model
from rmt_jax.training.workdir import open_workdir
from tests.convert.upstream import StateDict, assert_holds, prefixed, save, segmentor_state_dict, state_dict
from tests.golden import golden
from tests.models.small import abstract, small
from tests.training.conftest import TINY

HEADS = {"fpn_t": "semantic_fpn", "upernet_s": "upernet"}
CLASSES = tuple(f"class {i}" for i in range(7))
META = {"mmseg_version": "0.13.0", "CLASSES": CLASSES, "PALETTE": [[i, i, i] for i in range(7)], "iter": 80000}
NANO = {field: getattr(variant("rmt_nano"), field) for field in ("embed_dims", "depths", "num_heads")}
FPN = segmentor_state_dict("rmt_nano", "fpn_t", num_classes=7)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A Semantic FPN as mmcv saves it, and in every form that the command makes of it."""
    folder = tmp_path_factory.mktemp("segmentors")
    save(folder / "upstream.pth", {"meta": META, "state_dict": FPN, "optimizer": {"state": {}}})
    for name in ("directory", "file.safetensors", "file.pth"):
        assert main(["convert", str(folder / "upstream.pth"), str(folder / name)]) == 0
    return folder


def arrays(model: nnx.Module) -> dict[str, np.ndarray]:
    return {path: np.asarray(leaf) for path, leaf in flat_paths(model_arrays(model))}


@pytest.mark.parametrize("fixture", HEADS)
def test_names_are_upstreams(fixture: str) -> None:
    """All keys of the recorded models, and the shapes of their arrays."""
    model = abstract(f"rmt_{fixture[-1]}", task="segmentation", head=HEADS[fixture])
    paths = [path for path, _ in flat_paths(model_arrays(model))]
    manifest = json.loads((golden.ROOT / "dense" / fixture / "manifest.json").read_text())
    learned = {row["key"] for row in manifest if "Relpos" not in row["key"] and "num_batches" not in row["key"]}
    assert {torch_key(path, "segmentation") for path in paths} == learned
    assert len(paths) == len(learned)
    weights = Weights(f"rmt_{fixture[-1]}", "segmentation", model.config, {}, head=HEADS[fixture])
    zeros = {path: np.broadcast_to(np.float32(0), leaf.shape) for path, leaf in flat_paths(model_arrays(model))}
    found = {key: list(array.shape) for key, array in to_torch(zeros, weights.task).items()}
    assert found == {row["key"]: row["shape"] for row in manifest if row["key"] in learned}


@pytest.mark.parametrize("name", ["upstream.pth", "directory", "file.safetensors", "file.pth"])
def test_every_form_is_the_same_segmentor(name: str, folder: pathlib.Path) -> None:
    weights = read_weights(folder / name)
    assert (weights.name, weights.task, weights.head) == ("rmt_nano", "segmentation", "semantic_fpn")
    assert weights.config == variant("rmt_nano", num_classes=7, extra_norms=True)
    assert weights.class_names == CLASSES
    assert weights.describe() == "rmt_nano, semantic_fpn, 7 classes, 4,563,115 parameters"
    assert_holds(weights, FPN)
    model = rmt_jax.load_pretrained(folder / name, drop_path=0.2)
    assert isinstance(model, Segmentor)
    assert (model.head_name, model.config.num_classes, model.config.drop_path) == ("semantic_fpn", 7, 0.2)
    assert model.deterministic
    assert model.decode_head.scale_heads[0][0].bn.use_running_average
    kernel = FPN["decode_head.scale_heads.2.2.conv.weight"].numpy().transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(arrays(model)["decode_head/scale_heads/2/2/conv/kernel"], kernel)


def test_pytorch_files_are_as_mmcvs(folder: pathlib.Path) -> None:
    file = torch.load(folder / "file.pth", weights_only=True)
    assert file.keys() == {"meta", "state_dict", "rmt_jax"}
    assert file["meta"] == {"CLASSES": CLASSES}
    assert all(torch.equal(file["state_dict"][key], tensor) for key, tensor in FPN.items())


def test_upernet_under_a_prefix(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    upernet = segmentor_state_dict("rmt_nano", "upernet_s")
    path = save(tmp_path / "x.pth", {"state_dict": prefixed(upernet, "module.")})
    assert main(["convert", str(path), str(tmp_path / "model"), "--report"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "layout mmsegmentation, UperNet" in said
    assert "model rmt_nano, upernet, 150 classes" in said
    assert "left out" not in said
    assert "module.backbone.layers.0.Relpos.decay backbone.layers.0.Relpos.decay 2 constant, checked" in said
    assert "module.auxiliary_head.conv_seg.bias auxiliary_head/conv_seg/bias 150 copy" in said
    weights = read_weights(tmp_path / "model")
    assert weights.class_names is None
    assert_holds(weights, upernet)


def test_the_command_describes_and_verifies(folder: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "--list", str(folder / "upstream.pth")]) == 0
    listed = " ".join(capsys.readouterr().out.split())
    assert "layout: mmsegmentation, Semantic FPN; rmt_nano, semantic_fpn, 7 classes" in listed
    assert main(["convert", "--list", str(folder / "directory")]) == 0
    assert "classes 7: class 0, class 1" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_verification(folder: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(folder / "upstream.pth"), str(tmp_path / "x"), "--verify"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "before and after identical" in said
    assert "PyTorch not compared: the tests' PyTorch model has no heads of segmentors" in said


def change(key: str, value: torch.Tensor | None) -> StateDict:
    """The Semantic FPN with an entry that is another, or none."""
    changed = {**FPN, key: value}
    return {key: tensor for key, tensor in changed.items() if tensor is not None}


REFUSED: dict[str, tuple[Any, str]] = {
    "classes that differ": (
        change("decode_head.conv_seg.bias", torch.zeros(150)),
        r"do not fit rmt_nano, 1 problem\(s\):\n  shape: decode_head\.conv_seg\.bias is \(150,\), .* needs \(7,\)",
    ),
    "a missing entry": (
        change("neck.fpn_convs.1.conv.bias", None),
        r"missing: neck\.fpn_convs\.1\.conv\.bias \(for neck/fpn_convs/1/conv/bias\)",
    ),
    "another head beside": (
        change("auxiliary_head.conv_seg.bias", torch.zeros(7)),
        r"unexpected: auxiliary_head\.conv_seg\.bias \(7,\)",
    ),
    "another architecture": (
        change("backbone.layers.2.blocks.1.ffn.fc1.weight", torch.zeros(7, 96)),
        r"shape: backbone\.layers\.2\.blocks\.1\.ffn\.fc1\.weight is \(7, 96\)",
    ),
    "no model of ours": (
        change("backbone.layers.2.blocks.2.ffn.fc1.bias", torch.zeros(192)),
        r"of no known model\. Nearest is rmt_nano, which differs: depths \(1, 1, 3, 1\), there \(1, 1, 2, 1\)",
    ),
    "other constants": (
        change("backbone.layers.1.Relpos.decay", 1.1 * FPN["backbone.layers.1.Relpos.decay"]),
        r"constant: backbone\.layers\.1\.Relpos\.decay differs by 1\.0e-01",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused(case: str, tmp_path: pathlib.Path) -> None:
    content, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        read_weights(save(tmp_path / "x.pth", {"meta": META, "state_dict": content}))


def test_other_class_names_are_left_out_and_said(tmp_path: pathlib.Path) -> None:
    weights = read_weights(save(tmp_path / "x.pth", {"meta": {"CLASSES": ("sky",)}, "state_dict": FPN}))
    assert weights.class_names is None
    assert weights.notes == ("meta.CLASSES left out: it does not hold the names of 7 classes.",)


def test_heads_that_are_not_ours_leave_a_backbone(tmp_path: pathlib.Path) -> None:
    other = {key: tensor for key, tensor in FPN.items() if not key.startswith("decode_head.scale_heads")}
    weights = read_weights(save(tmp_path / "x.pth", {"state_dict": other}))
    assert (weights.task, weights.head) == ("backbone", None)
    assert set(weights.left_out) == {key for key in other if not key.startswith("backbone.")}


def test_another_number_of_classes(folder: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        model = load_pretrained(folder / "directory", num_classes=21)
    assert "Fresh head for 21 classes in the place of the one for 7" in caplog.text
    assert isinstance(model, Segmentor)
    assert model.decode_head.conv_seg.kernel[...].shape == (1, 1, 128, 21)


def test_a_segmentor_is_there_and_back_exact() -> None:
    source, target = (small("rmt_nano", seed=seed, task="segmentation", head="semantic_fpn") for seed in (1, 2))
    from_torch(to_torch(model_arrays(source), "segmentation"), target)
    found = arrays(target)
    for path, array in arrays(source).items():
        np.testing.assert_array_equal(found[path], array, err_msg=path, strict=True)


def test_a_classifiers_backbone_starts_a_segmentor(tmp_path: pathlib.Path) -> None:
    classifier = read_weights(save(tmp_path / "x.pth", {"model": state_dict("rmt_nano")}))
    model = small("rmt_nano", seed=4, **NANO, task="segmentation", head="semantic_fpn")
    before = arrays(model)
    fit = load_into(model, classifier, "x")
    assert {path.partition("/")[0] for path in fit.unused} == {"head", "norm", "proj"}
    trunk = {path for path in before if path.startswith("backbone/") and "extra_norms" not in path}
    assert set(fit.fresh) == before.keys() - trunk
    for path, array in arrays(model).items():
        np.testing.assert_array_equal(array, classifier.arrays[path] if path in trunk else before[path])


def test_weights_of_the_same_head_and_of_another(folder: pathlib.Path) -> None:
    weights = read_weights(folder / "directory")
    model = small("rmt_nano", seed=4, **NANO, num_classes=7, task="segmentation", head="semantic_fpn")
    assert load_into(model, weights, "x") == ([], [])
    conv_seg = ["decode_head/conv_seg/bias", "decode_head/conv_seg/kernel"]
    assert load_into(model, weights, "x", head=False) == (conv_seg, conv_seg)
    model.reset_classifier(9, rngs=nnx.Rngs(0))
    assert load_into(model, weights, "x").fresh == conv_seg

    upernet = abstract("rmt_nano", num_classes=7, task="segmentation", head="upernet")
    graph, state = nnx.split(upernet)
    fit = load_into(nnx.merge(graph, state), weights, "x")
    assert {path.partition("/")[0] for path in fit.unused} == {"backbone", "neck", "decode_head"}
    assert "decode_head/conv_seg/bias" in fit.fresh  # which would fit, and belongs to other features


def test_a_run_of_segmentation(tmp_path: pathlib.Path) -> None:
    """What training leaves: the task is read off the weights."""
    words = [f"--config.model.architecture.{key}={value}" for key, value in TINY.items()]
    config = parse(load_config("configs/digits.py", words))
    open_workdir(tmp_path / "run", config, write=True)
    model = small("rmt_nano", seed=5, **TINY, num_classes=4, task="segmentation", head="semantic_fpn")
    _, params, statistics = split_model(model)
    state = {"params": params, "batch_stats": statistics}
    checkpoints = Checkpoints(tmp_path / "run", config.checkpoint)
    checkpoints.save(3, state | {"ema": state, "opt_state": {}, "step": jnp.array(3)})
    checkpoints.close()
    weights = read_weights(tmp_path / "run")
    assert (weights.task, weights.head, weights.config.num_classes) == ("segmentation", "semantic_fpn", 4)
    assert weights.buffers["decode_head.scale_heads.0.0.bn.num_batches_tracked"] == 3
    loaded = load_pretrained(tmp_path / "run")
    for path, array in arrays(model).items():
        np.testing.assert_array_equal(arrays(loaded)[path], array)


@pytest.mark.slow
@pytest.mark.parametrize("fixture", HEADS)
def test_whole_files_at_full_size(fixture: str, tmp_path: pathlib.Path) -> None:
    """Every key that upstream's model has, with the weights that its numbers were recorded with."""
    name = f"rmt_{fixture[-1]}"
    file = segmentor_state_dict(name, fixture)
    manifest = json.loads((golden.ROOT / "dense" / fixture / "manifest.json").read_text())
    assert {key: list(tensor.shape) for key, tensor in file.items()} == {row["key"]: row["shape"] for row in manifest}
    path = save(tmp_path / "latest.pth", {"meta": {"epoch": 12}, "state_dict": file})
    assert main(["convert", str(path), str(tmp_path / "model")]) == 0
    assert main(["convert", str(tmp_path / "model"), str(tmp_path / "back.pth")]) == 0
    back = torch.load(tmp_path / "back.pth", weights_only=True)["state_dict"]
    assert back.keys() == file.keys()
    assert all(torch.equal(back[key], file[key]) for key in file)
