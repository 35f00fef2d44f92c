"""Upstream's checkpoints through the command and back, at full size, as one table.

    python -m tests.conversion [SECTION...]

For each of the seven models a complete file is made as upstream's training saves it (weights by the golden rule, moving
average, optimiser state, options), converted by `rmt convert`, loaded, compared with the independent PyTorch model that
loads the same file, and converted back. For the backbones of detectors and segmentors the outputs are recorded ones.
Float32, highest matmul precision.
"""

import contextlib
import functools
import io
import json
import os
import pathlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import torch
from flax import nnx

from rmt_jax.cli import main
from rmt_jax.convert import load_pretrained, to_torch
from rmt_jax.models import Backbone, Classifier, variant
from rmt_jax.tasks.classification import AUX_LOSS_WEIGHT
from rmt_jax.tasks.losses import cross_entropy
from rmt_jax.training.state import split_model
from tests.convert.upstream import StateDict, save, state_dict, torch_model, training_checkpoint
from tests.golden import golden
from tests.parity import (
    GRADIENT_TOLERANCE,
    OUTPUT_TOLERANCE,
    ZERO_GRADIENT_TOLERANCE,
    Row,
    relative_error,
    zero_gradient_biases,
)

MODELS = ("rmt_t", "rmt_s", "rmt_b", "rmt_l", "rmt_s_star", "rmt_b_star", "rmt_l_star")
BACKBONES = tuple(
    f"{kind}_backbone_{size}" for kind in ("det", "seg") for size in ("t", "s", "t_posgain01", "s_posgain01")
    if (golden.ROOT / "dense" / f"{kind}_backbone_{size}").exists()
)  # fmt: skip

LOGITS_SHAPE = (1, 224, 224, 3)
GRADIENT_SHAPE = (2, 64, 96, 3)
GAIN = 0.5  # of the weights: with 1, layer scales of about 1 let the 25 blocks of B's and L's third stage explode


def convert(*words: str | pathlib.Path) -> str:
    """Run the command; returns what it said.

    Raises:
        RuntimeError: it failed.
    """
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        code = main(["convert", *map(str, words)])
    if code:
        raise RuntimeError(f"rmt convert {' '.join(map(str, words))} ended with {code}")
    return said.getvalue()


def images(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Normal noise in our layout."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def in_torch(array: np.ndarray) -> torch.Tensor:
    """The same pictures in PyTorch's layout."""
    return torch.from_numpy(array.transpose(0, 3, 1, 2).copy())


def model_rows(name: str, folder: pathlib.Path) -> Iterator[Row]:
    """One of the seven models: logits, and the way back."""
    ema = state_dict(name, gain=GAIN, salt="ema ")
    source = save(folder / f"{name}.pth", training_checkpoint(state_dict(name, gain=GAIN), ema))
    said = convert(source, folder / name)
    if "(EMA), entry 'model_ema'" not in " ".join(said.split()):
        raise RuntimeError(f"the moving average was not taken:\n{said}")
    reference = torch_model(variant(name))
    reference.load_state_dict(ema, strict=True)
    model = load_pretrained(folder / name)
    if not isinstance(model, Classifier):
        raise TypeError(f"{name} became a {type(model).__name__}")

    pictures = images(LOGITS_SHAPE, seed=0)
    with torch.no_grad():
        expected = reference(in_torch(pictures)).numpy()
    yield Row(name, "logits", relative_error(run(model, pictures), expected), OUTPUT_TOLERANCE)

    convert(folder / name, folder / "back.pth", "--force")
    back = torch.load(folder / "back.pth", weights_only=True)["model"]
    yield Row(name, f"way back: {len(ema)} tensors, bits that differ", differing(back, ema), 0)
    torch_model(variant(name)).load_state_dict(back, strict=True)


def gradient_rows(name: str, folder: pathlib.Path) -> Iterator[Row]:
    """Gradients of every parameter in training mode without drop path, each as a share of its own norm."""
    weights = state_dict(name, gain=GAIN)
    model = load_pretrained(save(folder / "model.pth", weights), drop_path=0.0)
    pictures, labels = images(GRADIENT_SHAPE, seed=1), np.array([3, 977])
    model.train()
    graph, params, statistics = split_model(model)

    def loss_fn(params: Any, statistics: Any) -> jax.Array:
        outputs = nnx.merge(graph, params, statistics)(pictures)
        logits, *aux = outputs if isinstance(outputs, tuple) else (outputs,)
        targets = jax.nn.one_hot(labels, 1000)
        tokens = sum(cross_entropy(each, targets[:, None, None]) for each in aux)
        return cross_entropy(logits, targets) + AUX_LOSS_WEIGHT * tokens

    ours = to_torch(jax.jit(jax.grad(loss_fn))(params, statistics))

    reference = torch_model(variant(name, drop_path=0.0))
    reference.load_state_dict(weights, strict=True)
    reference.train()
    outputs = reference(in_torch(pictures))
    logits, *aux = outputs if isinstance(outputs, tuple) else (outputs,)
    targets = torch.from_numpy(labels)
    loss = torch.nn.functional.cross_entropy(logits, targets)
    for tokens in aux:
        spread = targets[:, None].expand(-1, tokens.shape[1] * tokens.shape[2]).flatten()
        loss = loss + AUX_LOSS_WEIGHT * torch.nn.functional.cross_entropy(tokens.flatten(0, 2), spread)
    loss.backward()
    expected = {key: parameter.grad.numpy() for key, parameter in reference.named_parameters()}
    if ours.keys() != expected.keys():
        raise ValueError(f"gradients of other parameters: {ours.keys() ^ expected.keys()}")

    norms = {key: float(np.linalg.norm(gradient)) for key, gradient in expected.items()}
    errors = {key: float(np.linalg.norm(ours[key] - gradient)) for key, gradient in expected.items()}
    zero = zero_gradient_biases(name)
    worst = max(errors[key] / norms[key] for key in expected if key not in zero)
    yield Row(name, f"{len(expected) - len(zero)} whole gradients", worst, GRADIENT_TOLERANCE)
    noise = max(errors[key] for key in zero) / max(norms.values())
    yield Row(name, f"{len(zero)} zero gradients", noise, ZERO_GRADIENT_TOLERANCE)


def backbone_rows(fixture: str, folder: pathlib.Path) -> Iterator[Row]:
    """A detector's or segmentor's backbone: its recorded maps, also at a size that 32 does not divide."""
    meta = json.loads((golden.ROOT / "dense" / fixture / "meta.json").read_text())
    name, expected = f"rmt_{fixture.split('_')[2]}", golden.expected(fixture)
    weights = {key: torch.from_numpy(array) for key, array in golden.state_dict(fixture).items()}
    weights |= {key: t for key, t in state_dict(name, headless=True, extra_norms=True).items() if "Relpos" in key}
    file = {f"backbone.{key}": tensor for key, tensor in weights.items()}
    source = save(folder / "detector.pth", {"meta": {"epoch": 12}, "state_dict": file})
    convert(source, folder / "backbone", "--force")
    model = load_pretrained(folder / "backbone")
    if not isinstance(model, Backbone):
        raise TypeError(f"{fixture} became a {type(model).__name__}")
    cases = {"out": (meta["seed"], meta["input_shape"])}
    if "odd_input" in meta:
        cases["odd_out"] = (meta["odd_input"]["seed"], meta["odd_input"]["shape"])
    for case, (seed, shape) in cases.items():
        pictures = images(tuple(shape), seed).transpose(0, 2, 3, 1)
        errors = []
        for i, found in enumerate(run(model, pictures)):
            about = meta["outputs"][f"{case}{i}"]
            part = golden.subsample(np.asarray(found).transpose(0, 3, 1, 2), about["stride"])
            errors.append(relative_error(part.reshape(-1), expected[f"{case}{i}"].reshape(-1), about["absmax"]))
        yield Row(fixture, f"four maps, {shape[2]}x{shape[3]}", max(errors), OUTPUT_TOLERANCE)
    convert(folder / "backbone", folder / "back.pth", "--force")
    back = torch.load(folder / "back.pth", weights_only=True)["model"]
    yield Row(fixture, f"way back: {len(weights)} tensors, bits that differ", differing(back, weights), 0)


def differing(found: StateDict, expected: StateDict) -> int:
    """Number of keys and values that are not the same to the bit."""
    different = len(found.keys() ^ expected.keys())
    for key in found.keys() & expected.keys():
        same = found[key].dtype == expected[key].dtype and found[key].shape == expected[key].shape
        different += int((found[key] != expected[key]).sum()) if same else 1
    return different


def run(model: Classifier | Backbone, pictures: np.ndarray) -> Any:
    """Outputs, compiled."""
    graph, state = nnx.split(model)
    return jax.jit(lambda state, x: nnx.merge(graph, state)(x))(state, pictures)


SECTIONS: dict[str, Callable[[pathlib.Path], Iterator[Row]]] = {
    **{name: functools.partial(model_rows, name) for name in MODELS},
    **{f"{name}_gradients": functools.partial(gradient_rows, name) for name in MODELS},
    **{fixture: functools.partial(backbone_rows, fixture) for fixture in BACKBONES},
}


def rows(section: str) -> list[Row]:
    """All comparisons of a section, in a folder that is gone afterwards: large models' files take gigabytes."""
    with tempfile.TemporaryDirectory() as folder:
        found = list(SECTIONS[section](pathlib.Path(folder)))
    jax.clear_caches()
    return found


def print_table(sections: list[str]) -> int:
    """Print the table; returns the exit code."""
    code = 0
    print("| weights | case | error | tolerance |\n|---|---|---|---|")
    for section in sections:
        for row in rows(section):
            code |= not row.error <= row.tolerance
            print(f"| {row.fixture} | {row.case} | {row.error:.1e} | {row.tolerance:.0e} |", flush=True)
    return code


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    jax.config.update("jax_default_matmul_precision", "highest")
    sys.exit(print_table(sys.argv[1:] or list(SECTIONS)))
