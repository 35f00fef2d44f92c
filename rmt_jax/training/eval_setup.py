"""What an evaluation needs, made and checked before the first batch; of the data only the evaluation split."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, NamedSharding

from rmt_jax.convert import Weights, class_differences, load_into, name_some, run_preprocessing
from rmt_jax.models import abstract_model
from rmt_jax.ops import formulations
from rmt_jax.tasks import Task
from rmt_jax.training.config import Config
from rmt_jax.training.describe import describe_formulations
from rmt_jax.training.kinds import Kind, kind_of
from rmt_jax.training.memory import describe_memory
from rmt_jax.training.program import predict_program
from rmt_jax.training.report import log
from rmt_jax.training.sharding import (
    Tree,
    batch_sharding,
    check_division,
    make_mesh,
    platform_of,
)
from rmt_jax.training.state import split_model


@dataclasses.dataclass(frozen=True)
class EvalSetup:
    """An evaluation, ready to start.

    Attributes:
        config: what it was made from.
        mesh: all devices.
        task: model and metric.
        eval_loader: batches of this process.
        abstract_weights: shapes, types and shardings of {params, batch_stats}.
        predict_step: compiled, ({params, batch_stats}, batch) -> outputs, replicated.
        batch_sharding: of a batch.
    """

    config: Config
    mesh: Mesh
    task: Task
    eval_loader: Any  # of the task
    abstract_weights: Tree
    predict_step: Callable[[Tree, Mapping[str, Array]], dict[str, Array]]
    batch_sharding: NamedSharding

    @property
    def kind(self) -> Kind:
        """What of all this depends on the task."""
        return kind_of(self.config)

    @property
    def class_names(self) -> tuple[str, ...]:
        """By label."""
        return tuple(self.eval_loader.source.class_names)

    def summary(self) -> dict[str, str]:
        """What is about to be evaluated, in the words of the summary table."""
        config, source = self.config, self.eval_loader.source
        devices, batch_size = jax.devices(), self.eval_loader.batch_size
        parameters = sum(leaf.size for leaf in jax.tree.leaves(self.abstract_weights["params"]))
        return {
            "model": f"{config.model.name}, {config.model.dtype}",
            "parameters": f"{parameters:,}",
            **self.kind.describe_work(config, self.task, self.eval_loader),
            "devices": f"{len(devices)} x {devices[0].device_kind}, {jax.process_count()} process(es)",
            "mesh": ", ".join(f"{axis} {count}" for axis, count in self.mesh.shape.items()),
            "formulations": describe_formulations(config, platform_of(self.mesh)),
            "freed memory": describe_memory(),
            "evaluation data": f"{source.name}: {len(source):,} pictures, {source.num_classes} classes",
            "evaluation batch": f"{batch_size} ({batch_size // len(devices)} a device)",
            "workers": f"{config.data.num_workers} processes, {config.data.num_threads} threads",
        }

    def place(self, weights: Weights, where: str) -> Tree:
        """{params, batch_stats} on the devices. What evaluation does not use may be missing, and is said.

        Args:
            weights: of the same backbone, with a head for the same classes.
            where: name of the source, for messages.

        Raises:
            ValueError: the weights do not fit, lack what evaluation needs, or were trained on other classes.
        """
        differences = class_differences(weights.class_names, self.class_names)
        if differences:
            raise ValueError(
                f"{where} was trained on other classes than {self.eval_loader.source.name} has: "
                f"{name_some(differences)}. Evaluate it on the data set it was trained on, or fine-tune it first."
            )
        model: Any = abstract_model(self.task.init_model)
        fit = load_into(model, weights, where)
        missing = [path for path in fit.fresh if not path.startswith(("aux_head/", "auxiliary_head/"))]
        if missing:
            raise ValueError(
                f"{where} ({weights.describe()}) lacks what evaluating {self.config.model.name} with "
                f"{len(self.class_names)} classes needs: {', '.join(missing)}. Train it first: "
                f"--config.init_from takes what fits and draws the rest."
            )
        log("; ".join(filter(None, [f"Weights from {where}: {weights.describe()}, {weights.kind}", str(fit)])))
        self._compare_preprocessing(weights)
        _, params, batch_stats = split_model(model)
        # Only an auxiliary head can still be without values, and evaluation does not use it.
        values = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf,
            {"params": params, "batch_stats": batch_stats},
        )
        return jax.device_put(values, jax.tree.map(lambda leaf: leaf.sharding, self.abstract_weights))

    def _compare_preprocessing(self, weights: Weights) -> None:
        here = run_preprocessing(dataclasses.asdict(self.config.data), self.config.task)
        if weights.preprocessing not in (None, here):
            log(f"These weights are for pictures of {weights.preprocessing}; evaluated with {here}.")


def prepare_evaluation(config: Config) -> EvalSetup:
    """Open the evaluation split, build the mesh and the prediction; nothing is compiled and no weights are made.

    Raises:
        ValueError: a configuration that cannot run here.
        FileNotFoundError: data that is not there.
    """
    formulations.overrides()  # what the environment asks for is refused here, if at all
    mesh = make_mesh(config.mesh)
    batch_size = config.eval_batch_size or config.batch_size
    check_division("eval_batch_size" if config.eval_batch_size else "batch_size", batch_size, mesh.size, 1)
    processes: dict[str, Any] = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    kind = kind_of(config)
    source = kind.open_source(config, config.data.eval_split)
    task = kind.make_task(config, source.num_classes)
    abstract_weights, predict_step = predict_program(config, task, mesh)
    return EvalSetup(
        config=config,
        mesh=mesh,
        task=task,
        eval_loader=kind.eval_loader(source, config, batch_size, **processes),
        abstract_weights=abstract_weights,
        predict_step=predict_step,
        batch_sharding=batch_sharding(mesh),
    )
