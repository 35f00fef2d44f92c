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

from rmt_jax.convert import class_differences, load_into, name_some, read_weights
from rmt_jax.data import TrainLoader, open_source
from rmt_jax.models import abstract_model
from rmt_jax.training.config import Config
from rmt_jax.training.describe import describe_augmentation, describe_loss
from rmt_jax.training.eval_setup import EvalSetup, check_batch, prepare_evaluation, with_sharding
from rmt_jax.training.optimizer import FROZEN_RULES, make_optimizer
from rmt_jax.training.report import log
from rmt_jax.training.schedule import learning_rates
from rmt_jax.training.sharding import batch_sharding, replicated, state_sharding
from rmt_jax.training.state import (
    State,
    init_state,
    make_train_step,
    split_model,
)
from rmt_jax.training.teacher import load_teacher


@dataclasses.dataclass(frozen=True)
class Setup(EvalSetup):
    """A run, ready to start: what its evaluations need, and beside that:

    Attributes:
        train_loader: batches of this process.
        learning_rates: one value an epoch, float64.
        abstract_state: shapes, types and shardings of the state.
        replicated_paths: arrays that the mesh should split but cannot.
        init: model -> state at step 0, on the mesh.
        train_step: compiled, (state, batch) -> (state, metrics); the state is donated.
    """

    train_loader: TrainLoader
    learning_rates: np.ndarray
    abstract_state: State
    replicated_paths: list[str]
    init: Callable[[nnx.Module], State]
    train_step: Callable[[State, Mapping[str, Array]], tuple[State, dict[str, Array]]]

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
        config, train, evaluation = self.config, self.train_loader.source, super().summary()
        workers = evaluation.pop("workers")
        rows = evaluation | {
            "model": f"{evaluation['model']}, drop path {self.task.model.drop_path:g}",
            "training data": f"{train.name}: {len(train):,} pictures, {train.num_classes} classes",
            "batch": f"{config.batch_size} ({config.batch_size // jax.device_count()} a device)"
            + (f" in {config.grad_accum_steps} parts" if config.grad_accum_steps > 1 else ""),
            "steps": f"{self.total_steps:,} = {config.epochs} epochs x {self.steps_per_epoch:,}",
            "learning rate": f"peak {config.peak_learning_rate:g} = {config.optimizer.learning_rate:g} x "
            f"{config.batch_size} / {config.reference_batch_size}, {config.schedule.warmup_epochs} epochs of warm-up, "
            f"cosine to {config.schedule.min_lr:g}",
            "augmentation": describe_augmentation(config),
            "loss": describe_loss(config),
            "optimizer": f"AdamW, weight decay {config.optimizer.weight_decay:g}, "
            + (f"clipped at {config.optimizer.clip_norm:g}" if config.optimizer.clip_norm else "no clipping")
            + (f", layer decay {config.optimizer.layer_decay:g}" if config.optimizer.layer_decay < 1 else "")
            + (", the head alone" if config.freeze_backbone else ""),
            "EMA": f"decay {self.config.step_ema_decay:.6g} a step",
            "workers": workers,
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
    check_batch("batch_size", config.batch_size, config.grad_accum_steps)
    evaluation = prepare_evaluation(config)
    mesh, train_loader = evaluation.mesh, _open_training(config)
    teacher, teacher_weights = load_teacher(config, evaluation.task.model.num_classes, mesh)
    task = dataclasses.replace(
        evaluation.task,
        label_smoothing=config.label_smoothing,
        loss_kind=config.loss,
        erasing=config.erasing,
        mix=config.mix,
        upstream_crops=config.data.token_labels.upstream_crops,
        teacher=teacher,
    )
    rates = learning_rates(config.schedule, config.peak_learning_rate, config.epochs)
    table, steps_per_epoch = jnp.asarray(rates, jnp.float32), train_loader.steps_per_epoch
    frozen_rules = FROZEN_RULES if config.freeze_backbone else None
    optimizer = make_optimizer(config.optimizer, lambda step: table[step // steps_per_epoch], frozen_rules=frozen_rules)
    model = abstract_model(task.init_model)
    if config.freeze_backbone:
        model.freeze_backbone()
    train_graph, *weights = split_model(model)

    make_state = functools.partial(init_state, optimizer=optimizer)
    shapes = jax.eval_shape(make_state, *weights)
    shardings, replicated_paths = state_sharding(mesh, shapes)
    train_step = make_train_step(
        task,
        train_graph,
        optimizer,
        seed=config.seed,
        ema_decay=config.step_ema_decay,
        grad_accum_steps=config.grad_accum_steps,
        frozen_rules=frozen_rules,
    )
    compiled = jax.jit(
        train_step,
        in_shardings=(shardings, batch_sharding(mesh), replicated(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )
    return Setup(
        config=config,
        mesh=mesh,
        task=task,
        train_loader=train_loader,
        eval_loader=evaluation.eval_loader,
        learning_rates=rates,
        abstract_state=with_sharding(shapes, shardings),
        abstract_weights=evaluation.abstract_weights,
        replicated_paths=replicated_paths,
        init=lambda model: jax.device_put(make_state(*split_model(model)[1:]), shardings),
        train_step=lambda state, batch: compiled(state, batch, teacher_weights),
        predict_step=evaluation.predict_step,
        batch_sharding=evaluation.batch_sharding,
    )


def _open_training(config: Config) -> TrainLoader:
    processes: dict[str, Any] = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    source = open_source(config.data, config.data.train_split)
    return TrainLoader(source, config.data, batch_size=config.batch_size, seed=config.seed, **processes)


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
        differences = class_differences(weights.class_names, setup.train_loader.source.class_names)
        fit = load_into(model, weights, f"init_from={source!r}", head=not differences)
        if differences:
            log(f"Fresh head: {source} was trained on other classes, {name_some(differences)}")
        log("; ".join(filter(None, [f"Weights from {source}: {weights.describe()}, {weights.kind}", str(fit)])))
    return setup.init(model)
