"""Knowledge distillation: learning from another model's predictions beside the labels."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float

from rmt_jax.tasks.losses import cross_entropy


@dataclasses.dataclass(frozen=True)
class DistillConfig:
    """What to learn from; without a teacher nothing.

    Attributes:
        teacher: its weights, whatever `rmt_jax.load_pretrained` takes; same classes, same mean and std.
        kind: "soft" learns its probabilities (arXiv 1503.02531), "hard" its best class (arXiv 2012.12877).
        weight: of the teacher's part in the loss; the labels keep the rest.
        temperature: of the softmax of both, "soft" only.

    Raises:
        ValueError: a value is out of its range.
    """

    teacher: str | None = None
    kind: Literal["soft", "hard"] = "hard"
    weight: float = 0.5
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise ValueError(f"distill.weight={self.weight}: expected a share of the loss between 0 and 1.")
        if self.temperature <= 0:
            raise ValueError(f"distill.temperature={self.temperature}: expected a positive number.")


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A teacher without its weights, which are an argument of the training step.

    Attributes:
        graph: of the model in evaluation mode.
        config: how to learn from it.
    """

    graph: nnx.GraphDef
    config: DistillConfig

    def logits(
        self, weights: dict[str, object], images: Float[Array, "batch height width 3"]
    ) -> Float[Array, "batch classes"]:
        """What it says of normalised pictures; `weights` are its {"params", "batch_stats"}."""
        return nnx.merge(self.graph, weights["params"], weights["batch_stats"])(images)

    def loss(
        self, logits: Float[Array, "batch classes"], teacher_logits: Float[Array, "batch classes"]
    ) -> Float[Array, ""]:
        """Distance from the teacher, in nats.

        "soft" is temperature^2 times the mean Kullback-Leibler divergence, "hard" the cross entropy to its best class.
        """
        if self.config.kind == "hard":
            return cross_entropy(logits, jax.nn.one_hot(teacher_logits.argmax(axis=-1), logits.shape[-1]))
        temperature = self.config.temperature
        own, goal = (jax.nn.log_softmax(x / temperature) for x in (logits, teacher_logits))
        return temperature**2 * (jnp.exp(goal) * (goal - own)).sum(axis=-1).mean()
