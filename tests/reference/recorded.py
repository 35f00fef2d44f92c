"""What was recorded from upstream, and the PyTorch reference with the weights that it was recorded with.

The numbers were recorded with PyTorch in float32 on a CPU, so only the order of sums may differ: tolerances are a few
float32 roundings.
"""

import copy
import functools
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests import torch_rmt
from tests.golden import golden

CLASSIFIERS = ("rmt_t", "rmt_s", "rmt_s_star")
SENSITIVE_BACKBONES = ("det_backbone_t_posgain01", "det_backbone_s_posgain01")  # late blocks matter in these
BACKBONES = ("det_backbone_t", "det_backbone_s", "seg_backbone_t", "seg_backbone_s", *SENSITIVE_BACKBONES)

# Shares of the output's largest magnitude. On the kind of processor that recorded them, stages agree to the last bit
# and logits to 3e-7. Other vector units or numbers of threads sum in another order: measured up to 9e-7.
OUTPUT_TOLERANCE = 2e-6
# Two of the dense fixtures grow their maps to 2e5, and upstream's own float32 is 1e-6 off its float64: measured 2e-6.
BACKBONE_TOLERANCE = 4e-6
# Gradients sum over every position of the batch, so roundings add up: measured up to 6e-6.
GRADIENT_TOLERANCE = 2e-5  # of a parameter's gradient norm, or of a gradient's largest magnitude
ZERO_GRADIENT_TOLERANCE = 1e-6  # of the largest norm: biases before BatchNorm, nothing but noise, measured 4e-8
TRAJECTORY_LOSS_TOLERANCE = 1e-6  # upstream's own noise is 1.4e-7, and so is ours
TRAJECTORY_LOGITS_TOLERANCE = 2e-4  # upstream's own noise is 4e-5, ours 6e-5 at most; mistakes show as 4e-4 and more
DEVIATION_TOLERANCE = 2e-3  # of float32's own deviation from float64, a few 1e-6: float64 agrees to 1e-8 and better


def relative_error(ours: Any, expected: np.ndarray, scale: float | None = None) -> float:
    """Largest absolute error as a share of the largest expected magnitude (or of `scale`)."""
    ours = ours.detach().numpy() if isinstance(ours, Tensor) else np.asarray(ours)
    if ours.shape != expected.shape:
        raise ValueError(f"shapes differ: {ours.shape}, expected {expected.shape}")
    return float(np.max(np.abs(ours - expected)) / (np.max(np.abs(expected)) if scale is None else scale))


def images(seed: int, shape: list[int]) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


@functools.cache
def meta(fixture: str) -> dict[str, Any]:
    flat = golden.ROOT / f"{fixture}.json"
    path = flat if flat.exists() else golden.ROOT / "dense" / fixture / "meta.json"
    return json.loads(path.read_text())


@functools.cache
def expected(fixture: str) -> Mapping[str, np.ndarray]:
    return golden.expected(fixture)


def variant_and_options(fixture: str) -> tuple[str, dict[str, Any]]:
    if fixture in CLASSIFIERS:
        return fixture, {"drop_path": 0.0}
    return "rmt_s" if "_s" in fixture else "rmt_t", {"drop_path": 0.0, "headless": True, "extra_norms": True}


@functools.lru_cache(maxsize=3)  # rmt_s takes 100 MB
def loaded(fixture: str) -> torch_rmt.RMT:
    name, options = variant_and_options(fixture)
    model = torch_rmt.build(name, **options)
    state = {key: torch.from_numpy(array) for key, array in golden.state_dict(fixture).items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(".Relpos." in key for key in missing)  # the constants stay the model's own
    return model.eval()


def model_of(fixture: str) -> torch_rmt.RMT:
    """A model with the weights that a fixture was recorded with, in evaluation mode, the caller's own."""
    return copy.deepcopy(loaded(fixture))
