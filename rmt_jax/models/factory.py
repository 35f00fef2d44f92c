"""Models by name."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from rmt_jax.models.classifier import Classifier
from rmt_jax.models.variants import variant

Model = TypeVar("Model", bound=nnx.Module)


def create_model(
    name: str,
    num_classes: int = 1000,
    drop_path: float | None = None,
    dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs | None = None,
    **overrides: Any,
) -> Classifier:
    """A model with fresh weights, in training mode.

    Args:
        name: one of `list_models()`.
        num_classes: outputs of the head, and of the auxiliary head of starred models.
        drop_path: rate of the last block; None for the variant's own.
        dtype: type to compute in, float32 or bfloat16. Parameters are float32; norms, softmax, rotary phases and decay
            are computed in float32.
        rngs: draws the weights; nnx.Rngs(0) where None.
        **overrides: any other field of `RMTConfig`, such as depths=(1, 1, 1, 1) or remat=True.

    Raises:
        ValueError: unknown name or field, or numbers that make no model.
    """
    if drop_path is not None:
        overrides["drop_path"] = drop_path
    config = variant(name, num_classes=num_classes, **overrides)
    if dtype not in (jnp.float32, jnp.bfloat16, "float32", "bfloat16"):
        raise ValueError(f"dtype must be float32 or bfloat16, got {dtype}.")
    return Classifier(config, dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0) if rngs is None else rngs)


def abstract_model(build: Callable[[nnx.Rngs], Model]) -> Model:
    """The model that `build` makes, with shapes and types in the place of arrays; nothing is computed.

    Args:
        build: makes a model from rngs, such as lambda rngs: create_model("rmt_l", rngs=rngs).
    """
    return nnx.eval_shape(lambda: build(_OneKey()))


class _OneKey(nnx.Rngs):
    """The same key for every draw: nothing is drawn under `eval_shape`, and nnx.Rngs takes quadratic time there."""

    def params(self) -> jax.Array:
        return jax.random.key(0)
