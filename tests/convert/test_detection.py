"""Detectors from mmdet's files and back, through the command: RMT-nano, which is quick."""

import json
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import rmt_jax
from rmt_jax.cli import main
from rmt_jax.convert import load_into, load_pretrained, read_weights, to_torch, torch_key
from rmt_jax.models import MaskRCNN, variant
from rmt_jax.models.arrays import flat_paths, model_arrays
from rmt_jax.training.checkpoint import Checkpoints
from rmt_jax.training.command_line import load_config
from rmt_jax.training.config import parse
from rmt_jax.training.state import split_model
from rmt_jax.training.workdir import open_workdir
from tests.convert.upstream import StateDict, assert_holds, detector_state_dict, prefixed, save, state_dict
from tests.golden import golden
from tests.models.small import abstract, small
from tests.training.conftest import TINY

HEADS = {"retinanet_t": "retinanet", "maskrcnn_s": "mask_rcnn", "cascade_s": "cascade_mask_rcnn"}
LAYOUTS = {
    "retinanet_t": "mmdetection, RetinaNet",
    "maskrcnn_s": "mmdetection, Mask R-CNN",
    "cascade_s": "mmdetection, Cascade Mask R-CNN",
}
CLASSES = tuple(f"class {i}" for i in range(7))
META = {"mmdet_version": "2.11.0", "CLASSES": CLASSES, "epoch": 12}
NANO = {field: getattr(variant("rmt_nano"), field) for field in ("embed_dims", "depths", "num_heads")}
MASK_RCNN = detector_state_dict("rmt_nano", "maskrcnn_s", num_classes=7)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A Mask R-CNN as mmcv saves it, and in every form that the command makes of it."""
    folder = tmp_path_factory.mktemp("detectors")
    save(folder / "upstream.pth", {"meta": META, "state_dict": MASK_RCNN, "optimizer": {"state": {}}})
    for name in ("directory", "file.safetensors", "file.pth"):
        assert main(["convert", str(folder / "upstream.pth"), str(folder / name)]) == 0
    return folder


@pytest.mark.parametrize("fixture", HEADS)
def test_names_are_upstreams(fixture: str) -> None:
    """All keys of the recorded models, and the shapes of their arrays."""
    model = abstract(f"rmt_{fixture[-1]}", task="detection", head=HEADS[fixture])
    paths = [path for path, _ in flat_paths(model_arrays(model))]
    manifest = json.loads((golden.ROOT / "dense" / fixture / "manifest.json").read_text())
    learned = {row["key"] for row in manifest if "Relpos" not in row["key"] and "num_batches" not in row["key"]}
    assert {torch_key(path, "detection") for path in paths} == learned
    assert len(paths) == len(learned)
    zeros = {path: np.broadcast_to(np.float32(0), leaf.shape) for path, leaf in flat_paths(model_arrays(model))}
    found = {key: list(array.shape) for key, array in to_torch(zeros, "detection").items()}
    assert found == {row["key"]: row["shape"] for row in manifest if row["key"] in learned}


@pytest.mark.parametrize("name", ["upstream.pth", "directory", "file.safetensors", "file.pth"])
def test_every_form_is_the_same_detector(name: str, folder: pathlib.Path) -> None:
    weights = read_weights(folder / name)
    assert (weights.name, weights.task, weights.head) == ("rmt_nano", "detection", "mask_rcnn")
    assert weights.config == variant("rmt_nano", num_classes=7, extra_norms=True)
    assert weights.class_names == CLASSES
    assert weights.describe().startswith("rmt_nano, mask_rcnn, 7 classes, ")
    assert_holds(weights, MASK_RCNN)


def test_layouts(folder: pathlib.Path) -> None:
    """Regions are flattened (channel, height, width) there and (height, width, channel) here."""
    model = rmt_jax.load_pretrained(folder / "directory", drop_path=0.2)
    assert isinstance(model, MaskRCNN)
    assert (model.config.num_classes, model.config.drop_path) == (7, 0.2)
    assert model.backbone.deterministic
    theirs = MASK_RCNN["roi_head.bbox_head.shared_fcs.0.weight"].numpy()
    ours = np.asarray(model.roi_head.bbox_head.shared_fcs[0].kernel[...])
    for row, column, channel in ((0, 0, 0), (2, 5, 100), (6, 6, 255)):
        np.testing.assert_array_equal(
            ours[(7 * row + column) * 256 + channel], theirs[:, channel * 49 + 7 * row + column]
        )
    theirs = MASK_RCNN["roi_head.mask_head.upsample.weight"].numpy()
    np.testing.assert_array_equal(model.roi_head.mask_head.upsample.kernel[...][1, 0, 3, 5], theirs[3, 5, 1, 0])


def test_pytorch_files_are_as_mmcvs(folder: pathlib.Path) -> None:
    file = torch.load(folder / "file.pth", weights_only=True)
    assert file.keys() == {"meta", "state_dict", "rmt_jax"}
    assert file["meta"] == {"CLASSES": CLASSES}
    assert all(torch.equal(file["state_dict"][key], tensor) for key, tensor in MASK_RCNN.items())


@pytest.mark.parametrize("fixture", ["retinanet_t", pytest.param("cascade_s", marks=pytest.mark.slow)])
def test_the_others_under_a_prefix(fixture: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = detector_state_dict("rmt_nano", fixture, num_classes=7)
    path = save(tmp_path / "x.pth", {"state_dict": prefixed(file, "module.")})
    assert main(["convert", "--list", str(path)]) == 0
    assert f"layout: {LAYOUTS[fixture]}" in " ".join(capsys.readouterr().out.split())
    assert main(["convert", str(path), str(tmp_path / "model")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"model rmt_nano, {HEADS[fixture]}, 7 classes" in said
    assert "left out" not in said
    assert_holds(read_weights(tmp_path / "model"), file)


def change(key: str, value: torch.Tensor | None) -> StateDict:
    """The Mask R-CNN with an entry that is another, or none."""
    changed = {**MASK_RCNN, key: value}
    return {key: tensor for key, tensor in changed.items() if tensor is not None}


REFUSED: dict[str, tuple[Any, str]] = {
    "classes that differ": (
        change("roi_head.bbox_head.fc_cls.bias", torch.zeros(81)),
        r"do not fit rmt_nano, 1 problem\(s\):\n  shape: roi_head\.bbox_head\.fc_cls\.bias is \(81,\), .* needs \(8,\)",
    ),
    "a missing entry": (
        change("rpn_head.rpn_conv.bias", None),
        r"missing: rpn_head\.rpn_conv\.bias \(for rpn_head/rpn_conv/bias\)",
    ),
    "another head beside": (
        change("roi_head.mask_iou_head.fcs.0.bias", torch.zeros(7)),
        r"unexpected: roi_head\.mask_iou_head\.fcs\.0\.bias \(7,\)",
    ),
    "regions of another size": (
        change("roi_head.bbox_head.shared_fcs.0.weight", torch.zeros(1024, 256 * 36)),
        r"shared_fcs\.0\.weight is \(1024, 9216\), this model needs \(1024, 12544\)",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused(case: str, tmp_path: pathlib.Path) -> None:
    content, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        read_weights(save(tmp_path / "x.pth", {"meta": META, "state_dict": content}))


def test_a_classifiers_backbone_starts_a_detector(tmp_path: pathlib.Path) -> None:
    classifier = read_weights(save(tmp_path / "x.pth", {"model": state_dict("rmt_nano")}))
    model = small("rmt_nano", seed=4, **NANO, task="detection", head="retinanet")
    before = {path: np.asarray(leaf) for path, leaf in flat_paths(model_arrays(model))}
    fit = load_into(model, classifier, "x")
    assert {path.partition("/")[0] for path in fit.unused} == {"head", "norm", "proj"}
    trunk = {path for path in before if path.startswith("backbone/") and "extra_norms" not in path}
    assert set(fit.fresh) == before.keys() - trunk
    for path, array in flat_paths(model_arrays(model)):
        np.testing.assert_array_equal(array, classifier.arrays[path] if path in trunk else before[path])


def test_weights_of_the_same_head_and_of_another(folder: pathlib.Path) -> None:
    weights = read_weights(folder / "directory")
    model = small("rmt_nano", seed=4, **NANO, num_classes=7, task="detection", head="mask_rcnn")
    assert load_into(model, weights, "x") == ([], [])
    layers = ("bbox_head/fc_cls", "bbox_head/fc_reg", "mask_head/conv_logits")
    of_classes = [f"roi_head/{layer}/{leaf}" for layer in layers for leaf in ("bias", "kernel")]
    assert load_into(model, weights, "x", head=False) == (of_classes, of_classes)
    retinanet = small("rmt_nano", seed=4, **NANO, num_classes=7, task="detection", head="retinanet")
    fit = load_into(retinanet, weights, "x")
    assert {path.partition("/")[0] for path in fit.unused} == {"backbone", "neck", "rpn_head", "roi_head"}
    assert {path.partition("/")[0] for path in fit.fresh} == {"backbone", "neck", "bbox_head"}


def test_another_number_of_classes(folder: pathlib.Path) -> None:
    model = load_pretrained(folder / "directory", num_classes=2)
    assert isinstance(model, MaskRCNN)
    assert model.roi_head.bbox_head.fc_reg.kernel[...].shape == (1024, 8)


def test_a_run_of_detection(tmp_path: pathlib.Path) -> None:
    """What training leaves: task, head and classes are read off the weights, and a narrow pyramid goes both ways."""
    sizes = TINY | {"pyramid_features": 8}
    words = [f"--config.model.architecture.{key}={value}" for key, value in sizes.items()]
    config = parse(load_config("configs/digits.py", words))
    open_workdir(tmp_path / "run", config, write=True)
    model = small("rmt_nano", seed=5, **sizes, num_classes=4, task="detection", head="retinanet")
    _, params, statistics = split_model(model)
    state = {"params": params, "batch_stats": statistics}
    checkpoints = Checkpoints(tmp_path / "run", config.checkpoint)
    checkpoints.save(3, state | {"ema": state, "opt_state": {}, "step": jnp.array(3)})
    checkpoints.close()
    weights = read_weights(tmp_path / "run")
    assert (weights.task, weights.head, weights.config.num_classes) == ("detection", "retinanet", 4)
    assert weights.buffers["backbone.patch_embed.proj.1.num_batches_tracked"] == 3
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "x.pth")]) == 0
    back = read_weights(tmp_path / "x.pth")
    assert back.config == weights.config
    assert back.config.pyramid_features == 8
    assert back.arrays.keys() == weights.arrays.keys()
    for path, array in back.arrays.items():
        np.testing.assert_array_equal(array, weights.arrays[path], err_msg=path)


@pytest.mark.slow
def test_verification(folder: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(folder / "upstream.pth"), str(tmp_path / "x"), "--verify"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "deltas, stride 64, before" in said
    assert "before and after identical" in said
    assert "PyTorch not compared: the tests' PyTorch model has no heads of segmentors and detectors" in said


@pytest.mark.slow
@pytest.mark.parametrize("fixture", HEADS)
def test_whole_files_at_full_size(fixture: str, tmp_path: pathlib.Path) -> None:
    """Every key that upstream's model has, with the weights that its numbers were recorded with."""
    name = f"rmt_{fixture[-1]}"
    file = detector_state_dict(name, fixture)
    manifest = json.loads((golden.ROOT / "dense" / fixture / "manifest.json").read_text())
    assert {key: list(tensor.shape) for key, tensor in file.items()} == {row["key"]: row["shape"] for row in manifest}
    path = save(tmp_path / "latest.pth", {"meta": {"epoch": 12}, "state_dict": file})
    assert main(["convert", str(path), str(tmp_path / "model")]) == 0
    assert main(["convert", str(tmp_path / "model"), str(tmp_path / "back.pth")]) == 0
    back = torch.load(tmp_path / "back.pth", weights_only=True)["state_dict"]
    assert back.keys() == file.keys()
    assert all(torch.equal(back[key], file[key]) for key in file)
