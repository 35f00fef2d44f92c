"""Models by name."""

from collections.abc import Callable
from typing import Any, Literal, TypeVar, overload

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from rmt_jax.models.classifier import Classifier
from rmt_jax.models.rmt import Backbone
from rmt_jax.models.variants import RMTConfig, variant

Model = TypeVar("Model", bound=nnx.Module)
ModelTask = Literal["classification", "backbone"]

_CLASSES: dict[str, type[Classifier] | type[Backbone]] = {"classification": Classifier, "backbone": Backbone}


@overload
def create_model(
    name: str,
    num_classes: int = ...,
    *,
    task: Literal["classification"] = ...,
    drop_path: float | None = ...,
    dtype: DTypeLike = ...,
    rngs: nnx.Rngs | None = ...,
    **overrides: Any,
) -> Classifier: ...


@overload
def create_model(
    name: str,
    num_classes: int = ...,
    *,
    task: Literal["backbone"],
    drop_path: float | None = ...,
    dtype: DTypeLike = ...,
    rngs: nnx.Rngs | None = ...,
    **overrides: Any,
) -> Backbone: ...


def create_model(
    name: str,
    num_classes: int = 1000,
    *,
    task: ModelTask = "classification",
    drop_path: float | None = None,
    dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs | None = None,
    **overrides: Any,
) -> Classifier | Backbone:
    """A model with fresh weights, in training mode.

    Args:
        name: one of `list_models()`.
        num_classes: outputs of the head, and of the auxiliary head of starred models.
        task: "classification" for logits, "backbone" for the four maps at strides 4, 8, 16, 32.
        drop_path: rate of the last block; None for the variant's own.
        dtype: type to compute in, float32 or bfloat16. Parameters are float32; norms, softmax, rotary phases and decay
            are computed in float32.
        rngs: draws the weights; nnx.Rngs(0) where None.
        **overrides: any other field of `RMTConfig`, such as depths=(1, 1, 1, 1) or remat="full".

    Raises:
        ValueError: unknown name, task or field, or numbers that make no model.
    """
    if drop_path is not None:
        overrides["drop_path"] = drop_path
    config = variant(name, num_classes=num_classes, **overrides)
    return build_model(config, task, dtype=dtype, rngs=nnx.Rngs(0) if rngs is None else rngs)


def build_model(config: RMTConfig, task: str, *, dtype: DTypeLike, rngs: nnx.Rngs) -> Classifier | Backbone:
    """The model of an architecture and a task (see `create_model`), with fresh weights, in training mode.

    Raises:
        ValueError: an unknown task or type.
    """
    if task not in _CLASSES:
        raise ValueError(f"task must be one of {', '.join(_CLASSES)}, got {task!r}.")
    if dtype not in (jnp.float32, jnp.bfloat16, "float32", "bfloat16"):
        raise ValueError(f"dtype must be float32 or bfloat16, got {dtype}.")
    return _CLASSES[task](config, dtype=jnp.dtype(dtype), rngs=rngs)


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
