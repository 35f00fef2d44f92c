"""AdamW with upstream's weight-decay groups, and the moving average of everything the model keeps."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

Tree = Any

# Which parameters decay; the first match decides. Upstream decays whatever has more than one dimension and is not a
# bias, which takes in its layer-scale factors: it stores them as 1x1x1xC.
WEIGHT_DECAY_RULES: tuple[tuple[str, bool], ...] = (
    (r"/?kernel$", True),
    (r"/?gamma_[12]$", True),
    (r"", False),
)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW.

    Attributes:
        learning_rate: peak, at `Config.reference_batch_size`; it grows linearly with the batch.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        epsilon: added to the root of the second moment.
        weight_decay: decoupled, times the learning rate.
        clip_norm: largest global norm of the gradients; None does not clip (upstream).
    """

    learning_rate: float = 5e-4
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.05
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise ValueError(f"optimizer.learning_rate={self.learning_rate}: expected a positive number.")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"optimizer.{name}={getattr(self, name)}: expected 0 <= {name} < 1.")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ValueError(f"optimizer.clip_norm={self.clip_norm}: expected a positive number, or None to not clip.")


def make_optimizer(
    config: OptimizerConfig,
    learning_rate: float | Callable[[Array], Array],
    rules: tuple[tuple[str, bool], ...] = WEIGHT_DECAY_RULES,
) -> optax.GradientTransformation:
    """AdamW, after clipping where the configuration says so.

    Args:
        config: its numbers; `config.learning_rate` is not read here.
        learning_rate: the value, or a function of the step.
        rules: (pattern, decays), the first that matches a parameter's path decides.
    """
    adamw = optax.adamw(
        learning_rate,
        b1=config.beta1,
        b2=config.beta2,
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        mask=lambda params: decay_mask(params, rules),
    )
    if config.clip_norm is None:
        return adamw
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)


def decay_mask(params: Tree, rules: tuple[tuple[str, bool], ...] = WEIGHT_DECAY_RULES) -> Tree:
    """True for each parameter that decays."""

    def decays(path: Any, _: Any) -> bool:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return next(value for pattern, value in rules if re.search(pattern, name))

    return jax.tree.map_with_path(decays, params)


def update_ema(ema: Tree, new: Tree, decay: float) -> Tree:
    """ema * decay + new * (1 - decay), leaf by leaf; no warm-up and no bias correction (timm's ModelEmaV2)."""
    return jax.tree.map(lambda old, value: old * decay + value * jnp.asarray(1 - decay, value.dtype), ema, new)
