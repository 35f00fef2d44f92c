"""Proof of a conversion: the same picture through the weights before and after, and through PyTorch."""

import functools
import importlib.util
import pathlib
import sys
import types
from typing import Any

import jax
import numpy as np
from flax import nnx

from rmt_jax.convert.weights import Weights
from rmt_jax.models import RUN_TIME_FIELDS, AnyModel, Backbone, Detector

IMAGE_SIZE = 224
TOLERANCE = 2e-5  # of the largest magnitude, in float32 under the highest matmul precision

# The independent PyTorch model of the tests; an installation from a wheel does not have it.
REFERENCE = pathlib.Path(__file__).parents[2] / "tests" / "torch_rmt.py"

Outputs = dict[str, np.ndarray]


def outputs(weights: Weights, images: np.ndarray, precision: str | None = "highest") -> Outputs:
    """{"logits"} of a model with a head or {"stride 4", ...} of a backbone, in evaluation mode and float32.

    Of a detector {"logits, stride 8", "deltas, stride 8", ...}: without the heads of regions, which need some.

    Args:
        weights: of the model.
        images: [batch height width 3] normalised floats.
        precision: of matrix products, see `jax.default_matmul_precision`; None is the platform's default.
    """
    model = weights.to_model()
    with jax.default_matmul_precision(precision):
        return _named(model, _forward(*nnx.split(model), images))


def reference_outputs(weights: Weights, images: np.ndarray) -> Outputs:
    """The same of the tests' PyTorch model, from the weights as a .pth holds them.

    Raises:
        ImportError: no PyTorch, or the tests are not beside the package.
        NotImplementedError: a segmentor or detector, whose heads the tests' model does not have.
    """
    if weights.head is not None:
        raise NotImplementedError("the tests' PyTorch model has no heads of segmentors and detectors")
    reference = load_reference()
    import torch

    fields = {name: value for name, value in vars(weights.config).items() if name not in RUN_TIME_FIELDS}
    model = reference.RMT(**fields, headless=weights.task == "backbone")
    model.load_state_dict({key: torch.from_numpy(array) for key, array in weights.to_torch().items()}, strict=True)
    model.eval()
    with torch.no_grad():
        found = model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    if isinstance(found, torch.Tensor):
        return {"logits": found.numpy()}
    return {_stride(i): fmap.numpy().transpose(0, 2, 3, 1) for i, fmap in enumerate(found)}


def load_reference() -> types.ModuleType:
    """The module tests/torch_rmt.py of a checkout.

    Raises:
        ImportError: no PyTorch, or an installation without the tests.
    """
    if not REFERENCE.is_file():
        raise ImportError("the PyTorch model is among the tests, which an installation from a wheel does not have")
    spec = importlib.util.spec_from_file_location("rmt_jax_torch_reference", REFERENCE)
    if spec is None or spec.loader is None:
        raise ImportError(f"{REFERENCE} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses of the module look themselves up there
    spec.loader.exec_module(module)
    return module


def sample_images(seed: int = 0) -> np.ndarray:
    """[1 224 224 3] normal noise, as normalised pictures are distributed."""
    return np.random.default_rng(seed).standard_normal((1, IMAGE_SIZE, IMAGE_SIZE, 3)).astype(np.float32)


def relative_error(found: Outputs, expected: Outputs) -> float:
    """The largest error of any output, as a share of that output's largest magnitude."""
    return max(
        float(np.max(np.abs(found[name] - array)) / max(float(np.max(np.abs(array))), np.finfo(np.float32).tiny))
        for name, array in expected.items()
    )


def statistics(found: Outputs) -> dict[str, str]:
    """Mean, deviation and extremes of each output in words; of a classifier also the class with the largest."""
    words = {}
    for name, array in found.items():
        words[name] = f"mean {array.mean():+.6f}, std {array.std():.6f}, min {array.min():+.5f}, max {array.max():+.5f}"
        if name == "logits" and array.ndim == 2:
            words[name] += f", class {int(array[0].argmax())}"
    return words


@functools.partial(jax.jit, static_argnums=0)
def _forward(graph: nnx.GraphDef, state: Any, images: Any) -> Any:
    return nnx.merge(graph, state)(images)


def _named(model: AnyModel, found: Any) -> Outputs:
    if isinstance(model, Backbone):
        return {_stride(i): np.asarray(fmap) for i, fmap in enumerate(found)}
    if isinstance(model, Detector):
        return {
            f"{name}, stride {stride}": np.asarray(output)
            for name, outputs in found._asdict().items()
            for stride, output in zip(model.strides, outputs, strict=True)
        }
    return {"logits": np.asarray(found)}


def _stride(stage: int) -> str:
    return f"stride {4 * 2**stage}"
