"""Everything a run needs, made and checked before the first step."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx
from jax import Array

from rmt_jax.convert import class_differences, load_into, name_some, read_weights
from rmt_jax.training.config import Config
from rmt_jax.training.describe import describe_placement
from rmt_jax.training.eval_setup import EvalSetup, prepare_evaluation
from rmt_jax.training.kinds import kind_of
from rmt_jax.training.program import Program, train_program
from rmt_jax.training.report import log
from rmt_jax.training.sharding import check_division
from rmt_jax.training.state import State
from rmt_jax.training.teacher import load_teacher


@dataclasses.dataclass(frozen=True)
class Setup(EvalSetup):
    """A run, ready to start: what its evaluations need, and beside that:

    Attributes:
        train_loader: batches of this process.
        program: the step, and where its state lives.
        train_step: compiled, (state, batch) -> (state, metrics); the state is donated.
    """

    train_loader: Any  # of the task
    program: Program
    train_step: Callable[[State, Mapping[str, Array]], tuple[State, dict[str, Array]]]

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in one pass over the training split."""
        return int(self.train_loader.steps_per_epoch)

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.config.total_steps(self.steps_per_epoch)

    def learning_rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        return self.program.learning_rates.at(step)

    def summary(self) -> dict[str, str]:
        """What is about to run, in the words of the summary table."""
        config, train, evaluation = self.config, self.train_loader.source, super().summary()
        workers, epochs = evaluation.pop("workers"), self.total_steps / self.steps_per_epoch
        of_what = config.optimizer.decay.replace("_", " ")
        decayed = "" if of_what == "matrices" else f" of {of_what}"
        rows = evaluation | {
            "model": f"{evaluation['model']}, drop path {config.model.resolve(1).drop_path:g}",
            "training data": f"{train.name}: {len(train):,} pictures, {train.num_classes} classes",
            "batch": f"{config.batch_size} ({config.batch_size // jax.device_count()} a device)"
            + (f" in {config.grad_accum_steps} parts" if config.grad_accum_steps > 1 else ""),
            **self._own_part(),
            "steps": f"{self.total_steps:,} = {epochs:.4g} epochs x {self.steps_per_epoch:,}",
            "learning rate": f"peak {config.peak_learning_rate:g} = {config.optimizer.learning_rate:g} x "
            f"{config.batch_size} / {config.reference_batch_size}, {config.schedule.describe()}",
            "augmentation": self.kind.describe_augmentation(config),
            "loss": self.kind.describe_loss(config),
            "optimizer": f"AdamW, weight decay {config.optimizer.weight_decay:g}{decayed}, "
            + (f"clipped at {config.optimizer.clip_norm:g}" if config.optimizer.clip_norm else "no clipping")
            + (f", layer decay {config.optimizer.layer_decay:g}" if config.optimizer.layer_decay < 1 else "")
            + (", the head alone" if config.freeze_backbone else ""),
            "EMA": f"decay {config.step_ema_decay:.6g} a step" if config.ema_decay else "none",
            "workers": workers,
        }
        return rows | describe_placement(self.program.placement, self.program.abstract_state)

    def _own_part(self) -> dict[str, str]:
        """What this process reads of each batch, where there are several."""
        if jax.process_count() == 1:
            return {}
        local, whole = self.train_loader.local_batch_size, self.train_loader.batch_size
        return {"this process": f"reads {local} of the {whole} pictures of each batch"}


def prepare(config: Config) -> Setup:
    """Open the data, build the mesh and the step; nothing is compiled yet and no weights are made.

    Raises:
        ValueError: a configuration that cannot run here.
        FileNotFoundError: data that is not there.
    """
    check_division("batch_size", config.batch_size, jax.device_count(), config.grad_accum_steps)
    evaluation = prepare_evaluation(config)
    mesh, train_loader = evaluation.mesh, _open_training(config)
    teacher, teacher_weights = load_teacher(config, len(evaluation.class_names), mesh)
    task: Any = evaluation.task
    if teacher is not None:
        task = dataclasses.replace(task, teacher=teacher)
    program = train_program(config, task, mesh, train_loader.steps_per_epoch)
    return Setup(
        config=config,
        mesh=mesh,
        task=task,
        train_loader=train_loader,
        eval_loader=evaluation.eval_loader,
        program=program,
        abstract_weights=evaluation.abstract_weights,
        train_step=lambda state, batch: program.train_step(state, batch, teacher_weights),
        predict_step=evaluation.predict_step,
        batch_sharding=evaluation.batch_sharding,
    )


def _open_training(config: Config) -> Any:
    processes = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    kind = kind_of(config)
    return kind.train_loader(kind.open_source(config, config.data.train_split), config, **processes)


def initial_state(setup: Setup) -> State:
    """The state at step 0: fresh weights, or those of `init_from`, and a fresh optimiser.

    Raises:
        ValueError: `init_from` holds no weights of RMT, or those of another backbone.
        FileNotFoundError, ImportError: see `read_weights`.
    """
    # Drawn op by op: XLA takes minutes over one program that draws all weights, and seconds over the single draws.
    model: Any = setup.task.init_model(nnx.Rngs(setup.config.seed))
    source = setup.config.init_from
    if source is not None:
        weights = read_weights(source)
        differences = class_differences(weights.class_names, setup.train_loader.source.class_names)
        fit = load_into(model, weights, f"init_from={source!r}", head=not differences)
        if differences:
            log(f"Fresh head: {source} was trained on other classes, {name_some(differences)}")
        log("; ".join(filter(None, [f"Weights from {source}: {weights.describe()}, {weights.kind}", str(fit)])))
    return setup.program.place(model)
