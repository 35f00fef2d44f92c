"""Forward pass and training step of a configuration, compiled and ready to be timed on the devices of this machine."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import Array

from rmt_jax.training.ahead import NUM_CLASSES
from rmt_jax.training.compiler import compiler_options
from rmt_jax.training.config import Config
from rmt_jax.training.program import place_model, train_program, training_task
from rmt_jax.training.sharding import batch_sharding, formulations_for, make_mesh, platform_of, replicated
from rmt_jax.training.timing import Work


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
        work: starts the program, and waits for it.
        text: gives the compiled program's text.
        compilation: how long it took until it ran.
        memory: bytes of arguments, results and temporaries of a device, None where that is not known.
    """

    work: Work
    text: Callable[[], str]
    compilation: Compilation
    memory: float | None


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

    def forward(state: Any, images: Array) -> Array:
        with formulations_for(mesh):
            found: Array = nnx.merge(graph, state)(images)
            return found

    jitted = jax.jit(forward, compiler_options=options)
    return _candidate(jitted, lambda compiled: compiled(state, images), state, images)


def train_candidate(config: Config, model: nnx.Module) -> Candidate:
    """The training step of `main.py`: forward, backward, optimiser, moving average, and what the recipe mixes."""
    mesh = make_mesh(config.mesh)
    program = train_program(config, training_task(config, NUM_CLASSES), mesh, steps_per_epoch=1000)
    state = program.place(model)
    labels = np.random.default_rng(1).integers(0, NUM_CLASSES, config.batch_size, dtype=np.int32)
    batch = jax.device_put({"image": pictures(config), "label": labels}, batch_sharding(mesh))

    def step(compiled: Any) -> Any:
        nonlocal state
        state, metrics = compiled(state, batch, {})
        return metrics

    return _candidate(program.train_step, step, state, batch, {})


def dispatch_seconds(work: Work, steps: int = 5) -> float:
    """What the host does to start it before it is free again: the smallest of a few, each with idle devices."""
    found = []
    for _ in range(steps):
        started = time.perf_counter()
        result = work.start()
        found.append(time.perf_counter() - started)
        work.wait([result])
    return min(found)


def _candidate(function: Any, start: Callable[[Any], Any], *arguments: Any) -> Candidate:
    """A jitted function compiled for arguments; `start` calls what was compiled."""
    started = time.perf_counter()
    lowered = function.lower(*arguments)
    traced = time.perf_counter()
    compiled = lowered.compile()
    done = time.perf_counter()
    work = Work(lambda: start(compiled), jax.block_until_ready)
    work.run()
    compilation = Compilation(traced - started, done - traced, time.perf_counter() - done)
    return Candidate(work, compiled.as_text, compilation, _memory(compiled))


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
