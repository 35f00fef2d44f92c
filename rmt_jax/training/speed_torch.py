"""The tests' PyTorch model in three forms, ready to be timed beside ours: the same weights, pictures and work."""

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx

from rmt_jax.convert.names import to_torch
from rmt_jax.convert.verify import load_reference
from rmt_jax.models import RUN_TIME_FIELDS
from rmt_jax.training.config import Config
from rmt_jax.training.speed import NUM_CLASSES, Candidate, normalised_pictures

EAGER, CHANNELS_LAST, COMPILED = "torch eager", "torch channels-last", "torch compiled"


def torch_candidates(config: Config, model: nnx.Module, *, train: bool) -> tuple[list[Candidate], dict[str, str]]:
    """(the forms that work, why the others do not), with the weights of `model`.

    The training step is forward, soft-target cross entropy, backward, AdamW and the moving average. bfloat16 is
    autocast. On all cores, or on the GPU where jax runs on one.

    Raises:
        ImportError: no PyTorch, or an installation without the tests.
    """
    load_reference()
    import torch

    weights = {name: torch.from_numpy(np.array(array)) for name, array in to_torch(_pure(model)).items()}
    candidates, failures = [], {}
    for name in (EAGER, CHANNELS_LAST, COMPILED):
        run = (_training_step if train else _forward)(config, weights, name)
        try:
            run()
        except Exception as error:  # whatever the compiler of PyTorch raises
            if name != COMPILED:
                raise
            failures[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
        else:
            candidates.append(Candidate(name, run))
    return candidates, failures


def forward_difference(config: Config, model: nnx.Module) -> float:
    """The largest difference of the logits of the two models, relative to the largest logit, in float32."""
    import torch

    weights = {name: torch.from_numpy(np.array(array)) for name, array in to_torch(_pure(model)).items()}
    reference = _build(config, weights, EAGER).eval()
    images = normalised_pictures(config)[:1]
    with torch.no_grad():
        expected = reference(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(_device())).cpu().numpy()
    graph, state = nnx.split(model)
    with jax.default_matmul_precision("highest"):
        found = np.asarray(jax.jit(lambda state, images: nnx.merge(graph, state)(images))(state, images))
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def _pure(model: nnx.Module) -> Any:
    return jax.device_get(nnx.to_pure_dict(nnx.state(model)))


def _device() -> str:
    return "cuda" if jax.default_backend() == "gpu" else "cpu"


def _build(config: Config, weights: Any, form: str) -> Any:
    import torch

    fields = {k: v for k, v in vars(config.model.resolve(NUM_CLASSES)).items() if k not in RUN_TIME_FIELDS}
    model = load_reference().RMT(**fields)
    found = model.load_state_dict(weights, strict=False)
    constants = [key for key in found.missing_keys if "Relpos" not in key and "num_batches_tracked" not in key]
    if constants or found.unexpected_keys:
        raise ValueError(f"The PyTorch model has other weights: {constants + found.unexpected_keys}")
    return model.to(_device(), memory_format=torch.channels_last if form == CHANNELS_LAST else torch.contiguous_format)


def _inputs(config: Config, form: str) -> Any:
    import torch

    images = torch.from_numpy(normalised_pictures(config).transpose(0, 3, 1, 2).copy()).to(_device())
    return images.to(memory_format=torch.channels_last) if form == CHANNELS_LAST else images


def _autocast(config: Config) -> Any:
    import torch

    if config.model.dtype != "bfloat16":
        return contextlib.nullcontext()
    return torch.autocast(_device(), dtype=torch.bfloat16)


def _finish() -> None:
    import torch

    if _device() == "cuda":
        torch.cuda.synchronize()


def _forward(config: Config, weights: Any, form: str) -> Callable[[], None]:
    import torch

    model, images = _build(config, weights, form).eval(), _inputs(config, form)
    function = torch.compile(model) if form == COMPILED else model

    def run() -> None:
        with torch.inference_mode(), _autocast(config):
            function(images)
        _finish()

    return run


def _training_step(config: Config, weights: Any, form: str) -> Callable[[], None]:
    import torch

    model, images = _build(config, weights, form).train(), _inputs(config, form)
    function = torch.compile(model) if form == COMPILED else model
    targets = torch.softmax(torch.randn(config.batch_size, NUM_CLASSES, device=_device()), dim=-1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=config.optimizer.weight_decay, fused=True)
    learned = list(model.parameters()) + [b for b in model.buffers() if b.is_floating_point()]
    average = [value.detach().clone() for value in learned]

    def run() -> None:
        with _autocast(config):
            logits = function(images)
        optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(logits.float(), targets).backward()
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, learned, 1 - config.step_ema_decay)
        _finish()

    return run
