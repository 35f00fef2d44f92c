"""Checkpoint files as upstream writes them, with weights made by the rule of the golden numbers.

Keys and shapes are those of the independent PyTorch model, so nothing here knows our names.
"""

import argparse
import json
import pathlib
import re
from typing import Any

import numpy as np
import torch

from rmt_jax.convert import Weights
from rmt_jax.models import RUN_TIME_FIELDS, RMTConfig, variant
from tests import torch_rmt
from tests.golden import golden

StateDict = dict[str, torch.Tensor]


def torch_model(config: RMTConfig, *, headless: bool = False) -> torch_rmt.RMT:
    """The independent PyTorch model of an architecture of ours, in evaluation mode."""
    fields = {name: value for name, value in vars(config).items() if name not in RUN_TIME_FIELDS}
    model = torch_rmt.RMT(**fields, headless=headless)
    model.eval()
    return model


def rule(key: str, shape: tuple[int, ...]) -> str:
    """How the golden fixtures make a weight."""
    name = key.rpartition(".")[2]
    if name in ("angle", "decay"):
        return "own"
    if name == "bias":
        return "bias"
    if "running" in name:
        return name.removeprefix("running_")
    if name == "num_batches_tracked":
        return "zero"
    return "scale" if len(shape) == 1 or name.startswith("gamma") else "matrix"


def state_dict(name: str, *, headless: bool = False, salt: str = "", gain: float = 0.5, **changes: Any) -> StateDict:
    """A complete state dict of a variant; another salt makes other weights."""
    config = variant(name, **changes)
    state_dict = {}
    for key, own in torch_model(config, headless=headless).state_dict().items():
        array = golden.weight(salt + key, own.shape, rule(key, own.shape), gain)
        state_dict[key] = own if array is None else torch.from_numpy(np.asarray(array))
        if key.endswith("num_batches_tracked"):
            state_dict[key] = torch.tensor(375300)
    return state_dict


def segmentor_state_dict(name: str, fixture: str, *, num_classes: int = 150) -> StateDict:
    """A complete state dict of mmseg's: the keys of a recorded model's neck and heads, with the widths of a variant."""
    dims = variant(name).embed_dims
    found = prefixed(state_dict(name, headless=True, extra_norms=True), "backbone.")
    for row in json.loads((golden.ROOT / "dense" / fixture / "manifest.json").read_text()):
        key, shape = row["key"], list(row["shape"])
        if key.startswith("backbone."):
            continue
        if ".conv_seg." in key:
            shape[0] = num_classes
        elif lateral := re.search(r"lateral_convs\.(\d)\.conv\.weight$", key):
            shape[1] = dims[int(lateral[1])]
        elif re.search(r"(psp_modules\.\d\.1|head\.bottleneck)\.conv\.weight$", key):
            shape[1] += dims[3] - 512
        elif key == "auxiliary_head.convs.0.conv.weight":
            shape[1] = dims[2]
        found[key] = torch.from_numpy(np.asarray(golden.weight(key, shape, row["rule"], row.get("gain", 1.0))))
    return found


def detector_state_dict(name: str, fixture: str, *, num_classes: int = 80) -> StateDict:
    """A complete state dict of mmdet's: the keys of a recorded model's neck and heads, with the widths of a variant."""
    dims = variant(name).embed_dims
    found = prefixed(state_dict(name, headless=True, extra_norms=True), "backbone.")
    outputs = {"retina_cls": 9 * num_classes, "fc_cls": num_classes + 1, "fc_reg": 4 * num_classes}
    outputs["conv_logits"] = num_classes
    for row in json.loads((golden.ROOT / "dense" / fixture / "manifest.json").read_text()):
        key, shape = row["key"], list(row["shape"])
        if key.startswith("backbone."):
            continue
        if key.split(".")[-2] in outputs:
            shape[0] = outputs[key.split(".")[-2]]
        elif lateral := re.search(r"lateral_convs\.(\d)\.conv\.weight$", key):
            shape[1] = dims[int(lateral[1]) + fixture.startswith("retinanet")]
        elif key == "neck.fpn_convs.3.conv.weight" and fixture.startswith("retinanet"):
            shape[1] = dims[3]
        found[key] = torch.from_numpy(np.asarray(golden.weight(key, shape, row["rule"], row.get("gain", 1.0))))
    return found


def training_checkpoint(model: StateDict, ema: StateDict | None) -> dict[str, Any]:
    """What upstream's training saves: also the optimiser, the scaler and the command line's options."""
    learned = [value for key, value in model.items() if "running" not in key and value.ndim and "Relpos" not in key]
    optimizer = {
        "state": {
            i: {"step": torch.tensor(5.0), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
            for i, p in enumerate(learned)
        },
        "param_groups": [{"lr": 1e-5, "betas": (0.9, 0.999), "params": list(range(len(learned)))}],
    }
    options = argparse.Namespace(model="RMT_S", epochs=300, data_path="/data/imagenet", drop=0.0, resume="", seed=None)
    checkpoint = {"model": model, "optimizer": optimizer, "lr_scheduler": {"base_values": [1e-3]}, "epoch": 299}
    checkpoint |= {"scaler": {"scale": 65536.0, "growth_tracker": 11}, "args": options, "max_accuracy": 84.1}
    return checkpoint if ema is None else checkpoint | {"model_ema": ema}


def save(path: pathlib.Path, content: Any) -> pathlib.Path:
    """torch.save; returns the path."""
    torch.save(content, path)
    return path


def prefixed(state_dict: StateDict, prefix: str) -> StateDict:
    """The same under longer names."""
    return {prefix + key: value for key, value in state_dict.items()}


def assert_holds(weights: Weights, expected: StateDict) -> None:
    """Bit for bit, the entries without weights included."""
    found = weights.to_torch()
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        np.testing.assert_array_equal(found[key], tensor.numpy(), err_msg=key, strict=True)
