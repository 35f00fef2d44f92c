"""Forward pass and training step of a configuration, compiled and ready to be timed on the devices of this machine."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx

from rmt_jax.training.ahead import NUM_CLASSES
from rmt_jax.training.compiler import compiler_options
from rmt_jax.training.config import Config
from rmt_jax.training.program import place_model, train_program, training_task
from rmt_jax.training.sharding import batch_sharding, make_mesh, platform_of, replicated


@dataclasses.dataclass(frozen=True)
class Compilation:
    """Seconds until a program can run, and until its first run is over.

    Attributes:
        trace: from Python to a jaxpr, and from there to StableHLO.
        compile: by XLA, from its cache where there is one.
        first_run: the first call.
    """

    trace: float
    compile: float
    first_run: float


@dataclasses.dataclass(frozen=True)
class Candidate:
    """Something to be timed.

    Attributes:
        run: does the work once, and returns when it is done.
        text: gives the compiled program's text.
        compilation: of a compiled program.
        memory: bytes of arguments, results and temporaries of a device, None where that is not known.
        dispatch: starts the work and returns, for what the host does for a step; None where it is not to be timed.
    """

    run: Callable[[], object]
    text: Callable[[], str]
    compilation: Compilation | None = None
    memory: float | None = None
    dispatch: Callable[[], object] | None = None


def pictures(config: Config) -> np.ndarray:
    """[batch size size 3] uint8 noise, always the same."""
    shape = (config.batch_size, config.data.image_size, config.data.image_size, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def normalised_pictures(config: Config) -> np.ndarray:
    """[batch size size 3] normal noise in float32, as normalised pictures are distributed."""
    shape = (config.batch_size, config.data.image_size, config.data.image_size, 3)
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def model_of(config: Config) -> nnx.Module:
    """The model of a configuration, with the fresh weights of its seed."""
    return training_task(config, NUM_CLASSES).init_model(nnx.Rngs(config.seed))


def weights_of(model: nnx.Module) -> Any:
    """Parameters and statistics, nested dicts on the host."""
    return jax.device_get(nnx.to_pure_dict(nnx.state(model)))


def logits(model: nnx.Module, images: np.ndarray) -> np.ndarray:
    """[batch classes] in evaluation mode, with products in full float32; the model's mode stays."""
    graph, state = nnx.split(nnx.view(model, deterministic=True, use_running_average=True))
    with jax.default_matmul_precision("highest"):
        return np.asarray(jax.jit(lambda state, images: nnx.merge(graph, state)(images))(state, images))


def forward_candidate(config: Config, model: nnx.Module) -> Candidate:
    """Logits of normalised pictures, in evaluation mode."""
    mesh = make_mesh(config.mesh)
    model.eval()
    place_model(model, mesh, config.mesh.min_split, config.model.dtype)
    graph, state = nnx.split(model)
    state = jax.device_put(nnx.to_pure_dict(state), replicated(mesh))
    images = jax.device_put(normalised_pictures(config), batch_sharding(mesh))
    options = compiler_options(platform_of(mesh))
    forward = jax.jit(lambda state, images: nnx.merge(graph, state)(images), compiler_options=options)
    compiled, compilation = _compile(forward, state, images)
    started = time.perf_counter()
    jax.block_until_ready(compiled(state, images))
    return Candidate(
        run=lambda: jax.block_until_ready(compiled(state, images)),
        compilation=dataclasses.replace(compilation, first_run=time.perf_counter() - started),
        memory=_memory(compiled),
        text=compiled.as_text,
    )


def train_candidate(config: Config, model: nnx.Module) -> Candidate:
    """The training step of `main.py`: forward, backward, optimiser, moving average, and what the recipe mixes."""
    mesh = make_mesh(config.mesh)
    program = train_program(config, training_task(config, NUM_CLASSES), mesh, steps_per_epoch=1000)
    state = program.place(model)
    labels = np.random.default_rng(1).integers(0, NUM_CLASSES, config.batch_size, dtype=np.int32)
    batch = jax.device_put({"image": pictures(config), "label": labels}, batch_sharding(mesh))
    compiled, compilation = _compile(program.train_step, state, batch, {})

    def step() -> Any:
        nonlocal state
        state, metrics = compiled(state, batch, {})
        return metrics

    started = time.perf_counter()
    jax.block_until_ready(step())
    return Candidate(
        run=lambda: jax.block_until_ready((step(), state)),
        compilation=dataclasses.replace(compilation, first_run=time.perf_counter() - started),
        memory=_memory(compiled),
        dispatch=step,
        text=compiled.as_text,
    )


def dispatch_seconds(candidate: Candidate, steps: int = 5) -> float | None:
    """What the host does for a step before it is free again: the smallest of a few, each with idle devices."""
    if candidate.dispatch is None:
        return None
    found = []
    for _ in range(steps):
        candidate.run()
        started = time.perf_counter()
        result = candidate.dispatch()
        found.append(time.perf_counter() - started)
        jax.block_until_ready(result)
    return min(found)


def _compile(function: Any, *arguments: Any) -> tuple[Any, Compilation]:
    started = time.perf_counter()
    lowered = function.lower(*arguments)
    traced = time.perf_counter()
    compiled = lowered.compile()
    return compiled, Compilation(traced - started, time.perf_counter() - traced, 0.0)


def _memory(compiled: Any) -> float | None:
    found = compiled.memory_analysis()
    if found is None:
        return None
    return float(
        found.argument_size_in_bytes
        + found.output_size_in_bytes
        + found.temp_size_in_bytes
        - found.alias_size_in_bytes  # donated arguments become results
    )
