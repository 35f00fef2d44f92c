"""The compiled training step of a configuration on a mesh: all that is known before there are data or weights."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array
from jax.sharding import Mesh
from jax.typing import DTypeLike

from rmt_jax.models import Stage, abstract_model
from rmt_jax.tasks import Task
from rmt_jax.training.compiler import compiler_options
from rmt_jax.training.config import Config
from rmt_jax.training.kinds import kind_of
from rmt_jax.training.optimizer import FROZEN_RULES, make_optimizer
from rmt_jax.training.schedule import LearningRates, learning_rates
from rmt_jax.training.sharding import (
    PerDevice,
    Placement,
    Tree,
    WeightGather,
    batch_sharding,
    formulations_for,
    platform_of,
    replicated,
)
from rmt_jax.training.state import State, init_state, make_predict_step, make_train_step, split_model

Step = Callable[[State, Mapping[str, Array], Tree], tuple[State, dict[str, Array]]]


@dataclasses.dataclass(frozen=True)
class Program:
    """The training step, and where its state lives.

    Attributes:
        placement: of arrays on the mesh.
        optimizer: of the parameters.
        learning_rates: of every step.
        abstract_state: shapes, types and shardings of the state.
        train_step: jitted, (state, batch, frozen) -> (state, metrics); the state is donated.
    """

    placement: Placement
    optimizer: optax.GradientTransformation
    learning_rates: LearningRates
    abstract_state: State
    train_step: Any  # jax.stages.Wrapped, with `lower`

    def place(self, model: nnx.Module) -> State:
        """The state at step 0 of a model with weights, on the mesh."""
        state = init_state(*split_model(model)[1:], self.optimizer)
        return jax.device_put(state, jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state))


def training_task(config: Config, num_classes: int) -> Task:
    """The task of a configuration; a teacher is added by who has loaded one."""
    return kind_of(config).make_task(config, num_classes)


def train_program(config: Config, task: Task, mesh: Mesh, steps_per_epoch: int) -> Program:
    """Nothing is compiled yet, and the mesh may be of devices that are not here."""
    total_steps = config.total_steps(steps_per_epoch)
    rates = learning_rates(config.schedule, config.peak_learning_rate, total_steps, steps_per_epoch)
    table = rates.table.astype(np.float32)
    frozen_rules = FROZEN_RULES if config.freeze_backbone else None
    optimizer = make_optimizer(
        config.optimizer, lambda step: jnp.asarray(table)[step // rates.steps], frozen_rules=frozen_rules
    )
    model: Any = abstract_model(task.init_model)
    if config.freeze_backbone:
        model.freeze_backbone()
    placement, gather = place_model(model, mesh, config.mesh.min_split, jnp.dtype(config.model.dtype))
    graph, *weights = split_model(model)

    shapes = jax.eval_shape(functools.partial(init_state, optimizer=optimizer), *weights)
    shardings = placement.shardings(shapes)
    step = make_train_step(
        task,
        graph,
        optimizer,
        seed=config.seed,
        ema_decay=config.step_ema_decay,
        grad_accum_steps=config.grad_accum_steps,
        frozen_rules=frozen_rules,
        gather=gather,
    )

    def train_step(state: State, batch: Mapping[str, Array], frozen: Tree) -> tuple[State, dict[str, Array]]:
        with formulations_for(mesh):
            return step(state, batch, frozen)

    return Program(
        placement=placement,
        optimizer=optimizer,
        learning_rates=rates,
        abstract_state=with_sharding(shapes, shardings),
        train_step=jax.jit(
            train_step,
            in_shardings=(shardings, batch_sharding(mesh), replicated(mesh)),
            out_shardings=(shardings, replicated(mesh)),
            donate_argnums=0,
            compiler_options=compiler_options(platform_of(mesh)),
        ),
    )


def predict_program(config: Config, task: Task, mesh: Mesh) -> tuple[Tree, Any]:
    """(abstract {"params", "batch_stats"} with shardings, the jitted prediction, its outputs on every device)."""
    model = abstract_model(task.init_model)
    model.eval()
    placement, gather = place_model(model, mesh, config.mesh.min_split, jnp.dtype(config.model.dtype))
    graph, params, batch_stats = split_model(model)
    shapes = {"params": params, "batch_stats": batch_stats}
    step = make_predict_step(task, graph, gather=gather)

    def predict_step(weights: Tree, batch: Mapping[str, Array]) -> dict[str, Array]:
        with formulations_for(mesh):
            return step(weights, batch)

    return with_sharding(shapes, placement.shardings(shapes)), jax.jit(
        predict_step, out_shardings=replicated(mesh), compiler_options=compiler_options(platform_of(mesh))
    )


def place_model(
    model: nnx.Module, mesh: Mesh, min_split: int, dtype: DTypeLike
) -> tuple[Placement, WeightGather | None]:
    """Where the arrays go, and what makes split ones whole; None where none is split.

    The stages of the model are told how to keep to a device's pictures.
    """
    placement = Placement(mesh, min_split)
    keep_to_devices(model, PerDevice(mesh, placement, dtype))
    return placement, WeightGather(placement, dtype) if mesh.shape["fsdp"] > 1 else None


def keep_to_devices(model: nnx.Module, per_device: PerDevice) -> None:
    """Tell the stages of a model that pictures are split over a mesh, if they are."""
    for _, module in nnx.iter_modules(model):
        if isinstance(module, Stage) and per_device.mesh.size > 1:
            module.per_device = per_device


def with_sharding(shapes: Tree, shardings: Tree) -> Tree:
    """Shapes and types, each with its sharding."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, shardings
    )
