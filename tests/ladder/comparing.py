"""Both sides with the same weights, and how far apart they are."""

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import torch
from flax import nnx
from jax import Array
from torch import Tensor, nn

from rmt_jax.convert import from_torch, torch_key
from rmt_jax.convert.names import fill, transform
from rmt_jax.models import Backbone, Classifier, abstract_model
from rmt_jax.models.arrays import flat_paths, model_arrays
from rmt_jax.models.factory import build_model
from tests.convert.upstream import torch_model
from tests.ladder.case import Case, Row
from tests.parity import relative_error

# XLA's older code generator for CPUs compiles the gradient of a small model in 2 seconds instead of 5, and compiling is
# what takes the time here. Later releases of jax do not know the option.
QUICK_COMPILATION = {"xla_cpu_use_fusion_emitters": False} if jax.__version_info__ < (0, 11) else {}


def random_weights(module: nn.Module, case: Case) -> None:
    """Weights that leave no branch negligible: attention far from uniform, no bias and no statistic at its default."""
    rng = np.random.default_rng((case.seed, 6))
    with torch.no_grad():
        for key, own in module.state_dict().items():
            name, normal = key.rpartition(".")[2], rng.standard_normal(tuple(own.shape))
            if "Relpos" in key or name == "num_batches_tracked":
                continue
            if name.startswith("gamma"):
                array = own.numpy() * (1 + 0.2 * normal)
            elif name == "running_var":
                array = 1 + 0.3 * np.abs(normal)
            elif name in ("bias", "running_mean"):
                array = 0.2 * normal
            elif own.ndim == 1:
                array = 1 + 0.1 * normal
            else:
                gain = 1.5 if key.endswith(("q_proj.weight", "k_proj.weight")) else 1.0
                array = gain * normal / math.sqrt(np.prod(own.shape[1:]))
            if re.match(r"patch_embed\.proj\.10\.(weight|bias)|layers.*\.downsample\.norm\.(weight|bias)", key):
                array = case.scale * array
            own.copy_(torch.as_tensor(array))


def copy_weights(theirs: nn.Module, ours: nnx.Module) -> None:
    """Ours from theirs, strictly: every parameter and statistic of either side has its counterpart."""
    state = {
        key: value.numpy()
        for key, value in theirs.state_dict().items()
        # The constants have a rung of their own: one rounding of gamma is more than conversion lets pass.
        if "Relpos" not in key and not key.endswith("num_batches_tracked")
    }
    if isinstance(ours, Classifier | Backbone):
        from_torch(state, ours)
        return
    paths = {torch_key(f"/{path}")[1:]: (path, leaf.ndim) for path, leaf in flat_paths(model_arrays(ours))}
    if set(paths) != set(state):
        raise ValueError(f"parameters without a counterpart: {set(paths) ^ set(state)}")
    fill(ours, {path: transform(f"/{path}", ndim).from_torch(state[key]) for key, (path, ndim) in paths.items()})


def pair(case: Case, build: Callable[[nnx.Rngs], nnx.Module], theirs: nn.Module) -> tuple[Any, nn.Module]:
    """Both modules with the same weights, in evaluation mode, theirs in its type."""
    random_weights(theirs, case)
    graph, state = nnx.split(abstract_model(build))
    ours = nnx.merge(graph, jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state))
    copy_weights(theirs, ours)
    ours.eval()
    return ours, theirs.to(getattr(torch, case.reference)).eval()


def models(case: Case) -> tuple[Any, nn.Module]:
    """Both whole models."""
    task = "backbone" if case.headless else "classification"
    theirs = torch_model(case.config, headless=case.headless)
    return pair(case, lambda rngs: build_model(case.config, task, dtype=case.dtype, rngs=rngs), theirs)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """jax.jit, quick to compile."""
    return jax.jit(function, compiler_options=QUICK_COMPILATION)


def error(ours: Any, theirs: Tensor | None) -> float:
    """Largest error as a share of the reference's largest magnitude, whatever the types."""
    expected = as_numpy(theirs)
    return relative_error(np.asarray(ours).astype(np.float64), expected, np.max(np.abs(expected)) or 1.0)


def as_numpy(tensor: Tensor | None) -> np.ndarray:
    """In float64. Gradients may be None, as far as types tell."""
    if tensor is None:
        raise ValueError("no gradient")
    return tensor.detach().double().numpy()


def channels_first(images: Tensor) -> Tensor:
    """PyTorch's layout."""
    return images.permute(0, 3, 1, 2)


def function_rows(
    case: Case, name: str, ours: Callable[..., Array], theirs: Callable[..., Tensor], *inputs: np.ndarray
) -> Iterator[Row]:
    """A function of arrays: its value, and the gradient of a random weighting of its value by each input."""
    tensors = [case.theirs(x).requires_grad_() for x in inputs]
    value = theirs(*tensors)
    weighting = case.normal(*value.shape, salt=2)
    value.backward(case.theirs(weighting))

    def value_and_gradients(weighting: Array, *arrays: Array) -> tuple[Array, tuple[Array, ...]]:
        value, pull_back = jax.vjp(ours, *arrays)
        return value, pull_back(weighting)

    outcome, gradients = compiled(value_and_gradients)(case.ours(weighting), *map(case.ours, inputs))
    yield Row(name, error(outcome, value), "function")
    for i, (gradient, tensor) in enumerate(zip(gradients, tensors, strict=True)):
        yield Row(f"{name}: gradient by input {i}", error(gradient, tensor.grad), "function gradient")


def call(module: Any, x: Array) -> Any:
    """Runs a module."""
    return compiled(lambda module, x: module(x))(module, x)
