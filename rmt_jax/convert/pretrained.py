"""Ready models from weights that are somewhere."""

import dataclasses
import logging
import pathlib
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from rmt_jax.convert.sources import read_weights
from rmt_jax.models import AnyModel, Backbone

_log = logging.getLogger(__name__)


def load_pretrained(
    source: str | pathlib.Path,
    *,
    num_classes: int | None = None,
    dtype: DTypeLike = jnp.float32,
    weights: str | None = None,
    rngs: nnx.Rngs | None = None,
    **overrides: Any,
) -> AnyModel:
    """A model with its weights, in evaluation mode.

    Args:
        source: a model directory or file of `rmt convert`, upstream's .pth itself, the workdir of a training run, or
            "user/name" (or "user/name@revision") on the Hugging Face hub.
        num_classes: another number of classes gets a fresh head, and a warning says so; None keeps the head.
        dtype: type to compute in, float32 or bfloat16; parameters are float32.
        weights: "ema" or "raw", where there are both; None is the moving average.
        rngs: draws a fresh head; nnx.Rngs(0) where None.
        **overrides: fields of `RMTConfig` that change no array, such as drop_path=0.2, remat="full" or aux_tap="norm".

    Returns:
        A `Classifier`, a `Segmentor`, a detector, or a `Backbone`. `model.train()` readies it for fine-tuning.

    Raises:
        FileNotFoundError, ImportError, ValueError: see `read_weights`; also an unknown field, num_classes for a
            backbone, or a field that the arrays do not fit.
    """
    found = read_weights(source, weights=weights)
    known = [field.name for field in dataclasses.fields(found.config)]
    for name in overrides:
        if name not in known:
            raise ValueError(f"Unknown architecture field {name!r}. Known: {', '.join(known)}.")
    config = dataclasses.replace(found.config, **overrides)
    model = dataclasses.replace(found, config=config).to_model(dtype)
    if num_classes is None:
        return model
    if isinstance(model, Backbone):
        raise ValueError(f"num_classes={num_classes}: {source} is a backbone, which has no head.")
    if num_classes == config.num_classes:
        return model
    _log.warning("Fresh head for %d classes in the place of the one for %d.", num_classes, config.num_classes)
    model.reset_classifier(num_classes, rngs=nnx.Rngs(0) if rngs is None else rngs)
    return model
