"""Everything a run needs, made and checked before the first step."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import Mesh, NamedSharding

from rmt_jax.convert import load_into, read_weights
from rmt_jax.data import EvalLoader, TrainLoader, open_source
from rmt_jax.models import abstract_model
from rmt_jax.models.flops import count_flops
from rmt_jax.tasks import Classification
from rmt_jax.training.config import Config
from rmt_jax.training.optimizer import make_optimizer
from rmt_jax.training.report import log
from rmt_jax.training.schedule import learning_rates
from rmt_jax.training.sharding import batch_sharding, make_mesh, replicated, state_sharding
from rmt_jax.training.state import (
    State,
    Tree,
    init_state,
    make_predict_step,
    make_train_step,
    model_graphs,
    split_model,
)


@dataclasses.dataclass(frozen=True)
class Setup:
    """A run, ready to start.

    Attributes:
        config: what it was made from.
        mesh: all devices.
        task: model, loss, metric.
        train_loader: batches of this process.
        eval_loader: batches of this process.
        learning_rates: one value an epoch, float64.
        abstract_state: shapes, types and shardings of the state.
        replicated_paths: arrays that the mesh should split but cannot.
        init: model -> state at step 0, on the mesh.
        train_step: compiled, (state, batch) -> (state, metrics); the state is donated.
        predict_step: compiled, ({params, batch_stats}, batch) -> outputs, replicated.
        batch_sharding: of a batch.
    """

    config: Config
    mesh: Mesh
    task: Classification
    train_loader: TrainLoader
    eval_loader: EvalLoader
    learning_rates: np.ndarray
    abstract_state: State
    replicated_paths: list[str]
    init: Callable[[nnx.Module], State]
    train_step: Callable[[State, Mapping[str, Array]], tuple[State, dict[str, Array]]]
    predict_step: Callable[[Tree, Mapping[str, Array]], dict[str, Array]]
    batch_sharding: NamedSharding

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in one pass over the training split."""
        return self.train_loader.steps_per_epoch

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.config.epochs * self.steps_per_epoch

    def learning_rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        return float(self.learning_rates[min(step // self.steps_per_epoch, self.config.epochs - 1)])

    def summary(self) -> dict[str, str]:
        """What is about to run, in the words of the summary table."""
        config, model = self.config, self.task.model
        size, data = config.data.image_size, config.data
        train, evaluation = self.train_loader.source, self.eval_loader.source
        parameters = sum(leaf.size for leaf in jax.tree.leaves(self.abstract_state["params"]))
        devices = jax.devices()
        rows = {
            "model": f"{config.model.name}, {config.model.dtype}, drop path {model.drop_path:g}",
            "parameters": f"{parameters:,}",
            "FLOPs": f"{count_flops(model, size, size) / 1e9:.3f} G multiply-accumulates a picture of {size}x{size}",
            "devices": f"{len(devices)} x {devices[0].device_kind}, {jax.process_count()} process(es)",
            "mesh": ", ".join(f"{axis} {count}" for axis, count in self.mesh.shape.items()),
            "training data": f"{train.name}: {len(train):,} pictures, {train.num_classes} classes",
            "evaluation data": f"{evaluation.name}: {len(evaluation):,} pictures",
            "batch": f"{config.batch_size} ({config.batch_size // len(devices)} a device)"
            + (f" in {config.grad_accum_steps} parts" if config.grad_accum_steps > 1 else ""),
            "steps": f"{self.total_steps:,} = {config.epochs} epochs x {self.steps_per_epoch:,}",
            "learning rate": f"peak {config.peak_learning_rate:g} = {config.optimizer.learning_rate:g} x "
            f"{config.batch_size} / {config.reference_batch_size}, {config.schedule.warmup_epochs} epochs of warm-up, "
            f"cosine to {config.schedule.min_lr:g}",
            "optimizer": f"AdamW, weight decay {config.optimizer.weight_decay:g}, "
            + (f"clipped at {config.optimizer.clip_norm:g}" if config.optimizer.clip_norm else "no clipping"),
            "EMA": f"decay {self.config.step_ema_decay:.6g} a step",
            "workers": f"{data.num_workers} processes, {data.num_threads} threads",
        }
        if self.replicated_paths:
            rows["not split"] = f"{len(self.replicated_paths)} arrays, such as {self.replicated_paths[0]}"
        return rows


def prepare(config: Config) -> Setup:
    """Open the data, build the mesh and the step; nothing is compiled yet and no weights are made.

    Raises:
        ValueError: a configuration that cannot run here.
        FileNotFoundError: data that is not there.
    """
    mesh = make_mesh(config.mesh)
    train_loader, eval_loader = _open_loaders(config)
    task = Classification(
        model=config.model.resolve(train_loader.source.num_classes),
        dtype=config.model.dtype,
        mean=config.data.mean,
        std=config.data.std,
        label_smoothing=config.label_smoothing,
    )
    rates = learning_rates(config.schedule, config.peak_learning_rate, config.epochs)
    table, steps_per_epoch = jnp.asarray(rates, jnp.float32), train_loader.steps_per_epoch
    optimizer = make_optimizer(config.optimizer, lambda step: table[step // steps_per_epoch])
    train_graph, eval_graph = model_graphs(task)

    make_state = functools.partial(init_state, optimizer=optimizer)
    _, *weights = split_model(abstract_model(task.init_model))
    shapes = jax.eval_shape(make_state, *weights)
    shardings, replicated_paths = state_sharding(mesh, shapes)
    train_step = make_train_step(
        task,
        train_graph,
        optimizer,
        seed=config.seed,
        ema_decay=config.step_ema_decay,
        grad_accum_steps=config.grad_accum_steps,
    )
    return Setup(
        config=config,
        mesh=mesh,
        task=task,
        train_loader=train_loader,
        eval_loader=eval_loader,
        learning_rates=rates,
        abstract_state=jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, shardings
        ),
        replicated_paths=replicated_paths,
        init=lambda model: jax.device_put(make_state(*split_model(model)[1:]), shardings),
        train_step=jax.jit(
            train_step,
            in_shardings=(shardings, batch_sharding(mesh)),
            out_shardings=(shardings, replicated(mesh)),
            donate_argnums=0,
        ),
        predict_step=jax.jit(make_predict_step(task, eval_graph), out_shardings=replicated(mesh)),
        batch_sharding=batch_sharding(mesh),
    )


def _open_loaders(config: Config) -> tuple[TrainLoader, EvalLoader]:
    data, eval_batch_size = config.data, config.eval_batch_size or config.batch_size
    _check_batch("batch_size", config.batch_size, config.grad_accum_steps)
    _check_batch("eval_batch_size", eval_batch_size, 1)
    processes: dict[str, Any] = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    train_source, eval_source = open_source(data, data.train_split), open_source(data, data.eval_split)
    return (
        TrainLoader(train_source, data, batch_size=config.batch_size, seed=config.seed, **processes),
        EvalLoader(eval_source, data, batch_size=eval_batch_size, **processes),
    )


def initial_state(setup: Setup) -> State:
    """The state at step 0: fresh weights, or those of `init_from`, and a fresh optimiser.

    Raises:
        ValueError: `init_from` holds no weights of RMT, or those of another backbone.
        FileNotFoundError, ImportError: see `read_weights`.
    """
    # Drawn op by op: XLA takes minutes over one program that draws all weights, and seconds over the single draws.
    model = setup.task.init_model(nnx.Rngs(setup.config.seed))
    source = setup.config.init_from
    if source is not None:
        weights = read_weights(source)
        fit = load_into(model, weights, f"init_from={source!r}")
        log("; ".join(filter(None, [f"Weights from {source}: {weights.describe()}, {weights.kind}", str(fit)])))
    return setup.init(model)


def _check_batch(name: str, batch_size: int, parts: int) -> None:
    devices = jax.device_count()
    if batch_size % (devices * parts):
        pieces = f"{devices} device(s)" + (f" x grad_accum_steps={parts}" if parts > 1 else "")
        multiple = devices * parts
        below, above = batch_size // multiple * multiple, -(-batch_size // multiple) * multiple
        raise ValueError(f"{name}={batch_size} cannot be divided over {pieces}. Use {below or above} or {above}.")
