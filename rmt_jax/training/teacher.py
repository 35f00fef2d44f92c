"""The teacher of a distillation, loaded and checked before the run starts."""

import jax

from rmt_jax.convert import load_pretrained
from rmt_jax.models import Classifier
from rmt_jax.tasks import Teacher
from rmt_jax.training.config import Config
from rmt_jax.training.program import keep_to_devices
from rmt_jax.training.sharding import PerDevice, replicated
from rmt_jax.training.state import Tree, split_model


def load_teacher(config: Config, num_classes: int, mesh: jax.sharding.Mesh) -> tuple[Teacher | None, Tree]:
    """(teacher, its {"params", "batch_stats"} on every device); (None, {}) without distillation.

    Raises:
        ValueError: it has other classes than the data set, no head, or the recipe mixes tokens, which it cannot follow.
        FileNotFoundError, ImportError: see `read_weights`.
    """
    source = config.distill.teacher
    if source is None:
        return None, {}
    if config.mix.mix_token:
        raise ValueError("distill.teacher excludes mix.mix_token, which a teacher cannot follow: turn one off.")
    model = load_pretrained(source, dtype=config.model.dtype)
    if not isinstance(model, Classifier) or model.config.num_classes != num_classes:
        found = f"{model.config.num_classes} classes" if isinstance(model, Classifier) else "no head"
        raise ValueError(f"distill.teacher={source!r} has {found}, the data set has {num_classes} classes.")
    keep_to_devices(model, PerDevice(mesh))
    graph, params, batch_stats = split_model(model)
    weights = jax.device_put({"params": params, "batch_stats": batch_stats}, replicated(mesh))
    return Teacher(graph, config.distill), weights
