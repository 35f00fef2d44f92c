"""What is exported: a function of pictures, and what goes into it and comes out of it."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, export

from rmt_jax.convert import DensePreprocessing, Preprocessing, Weights
from rmt_jax.models import Backbone
from rmt_jax.models.rmt import MIN_SIZE
from rmt_jax.ops import formulations
from rmt_jax.tasks import normalize
from rmt_jax.version import __version__

INPUT = "images"
_MEANINGS = {
    "classification": "a number for each class, not normalised: softmax gives probabilities",
    "segmentation": "a number for each class at every fourth pixel: enlarge, then take the largest",
    "backbone": "the map of a stage, [batch height width channels]",
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a model is exported.

    Attributes:
        image_size: (height, width) in pixels; None for a square as the weights name it, or else 224, of segmentors and
            detectors what upstream's shorter side is, 512 and 800. Decays and rotary phases are those of one size.
        batch_size: pictures in a call; None for any number.
        dtype: "float32" or "bfloat16", to compute in; inputs and outputs of it are float32 all the same.
        pixels: take uint8 RGB and normalise it, instead of normalised floats.
        backbone: give the four maps of the backbone and leave the head out.

    Raises:
        ValueError: sizes that no model takes.
    """

    image_size: tuple[int, int] | None = None
    batch_size: int | None = None
    dtype: str = "float32"
    pixels: bool = False
    backbone: bool = False

    def __post_init__(self) -> None:
        if self.image_size is not None and min(self.image_size) < MIN_SIZE:
            size = " ".join(map(str, self.image_size))
            raise ValueError(f"--image-size {size}: the models take {MIN_SIZE} pixels or more along each side.")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"--batch-size={self.batch_size}: expected 1 or more.")


class Program:
    """A model's forward pass, ready to be written in a form that other programs run.

    Attributes:
        weights: of the model.
        images: shape and type of the input; the first dimension is symbolic where any number of pictures is taken.
        outputs: of the results, by name.

    Raises:
        ValueError: a detector.
    """

    def __init__(self, weights: Weights, settings: Settings, *, depthwise: str = "shifts") -> None:
        self.weights, self.settings = weights, settings
        batch: Any = settings.batch_size
        if batch is None:
            (batch,) = export.symbolic_shape("batch")
        self.task = "backbone" if settings.backbone else weights.task
        if self.task == "detection":
            raise ValueError(
                f"These weights ({weights.describe()}) are of a detector, which is not exported: what it suppresses "
                f"and cuts out has no form in these files. --backbone exports its backbone; `rmt predict` runs all."
            )
        self.images = jax.ShapeDtypeStruct(
            (batch, *_image_size(weights, settings), 3), jnp.uint8 if settings.pixels else jnp.float32
        )
        self._function = _forward(weights, settings, depthwise)
        found = jax.eval_shape(self._function, self.images)
        names = [f"stride_{4 * 2**i}" for i in range(len(found))] if self.task == "backbone" else ["logits"]
        self.outputs = dict(zip(names, found, strict=True))

    def __call__(self, images: Array) -> tuple[Array, ...]:
        """Results in the order of `outputs`, float32."""
        return self._function(images)

    def prepare(self, pictures: np.ndarray) -> np.ndarray:
        """uint8 [batch height width 3] as the program takes it."""
        if self.settings.pixels:
            return pictures
        known = _preprocessing(self.weights)
        return np.asarray(normalize(jnp.asarray(pictures), known.mean, known.std))

    def describe(self) -> dict[str, Any]:
        """What a person or a program needs to know who runs it, ready for JSON."""
        card = self.weights.card()
        meaning = "RGB, 0 to 255" if self.settings.pixels else "RGB, (pixels / 255 - mean) / std"
        return {
            "rmt_jax": __version__,
            "description": self.weights.describe(),
            **{key: card[key] for key in ("model", "head", "class_names", "provenance")},
            "task": self.task,
            "dtype": self.settings.dtype,
            "input": _describe(INPUT, self.images, meaning),
            "outputs": [_describe(name, array, _MEANINGS[self.task]) for name, array in self.outputs.items()],
            "preprocessing": dataclasses.asdict(_preprocessing(self.weights)),
            "preprocessing_known": self.weights.preprocessing is not None,
        }


def _preprocessing(weights: Weights) -> Preprocessing | DensePreprocessing:
    return weights.resizing if weights.task in ("segmentation", "detection") else weights.cropping


def _image_size(weights: Weights, settings: Settings) -> tuple[int, int]:
    if settings.image_size is not None:
        return settings.image_size
    known = _preprocessing(weights)
    side = known.image_size if isinstance(known, Preprocessing) else known.scale[1]
    return side, side


def _forward(weights: Weights, settings: Settings, depthwise: str) -> Callable[[Array], tuple[Array, ...]]:
    model: Any = weights.to_model(settings.dtype)
    if settings.backbone and not isinstance(model, Backbone):
        model = model.backbone
    preprocessing = _preprocessing(weights)
    graph, state = nnx.split(model)
    arrays = jax.tree.map_with_path(functools.partial(_stored, settings.dtype), nnx.to_pure_dict(state))

    def forward(images: Array) -> tuple[Array, ...]:
        if settings.pixels:
            images = normalize(images, preprocessing.mean, preprocessing.std)
        # Formulations that every platform has: kernels are for the one that they are written for.
        common = {"retention": "at_once", "ffn": "layers", "blocks": "all_pictures", "reuse": "by_compiler"}
        common |= {"block_calls": "inlined"}
        with formulations.asking("cpu", depthwise=depthwise, **common):
            found = nnx.merge(graph, arrays)(images)
        return tuple(x.astype(jnp.float32) for x in (found if isinstance(found, tuple) else (found,)))

    return forward


def _stored(dtype: str, path: tuple[Any, ...], array: Array) -> Array:
    """Kernels in the type that layers turn them into anyway, which makes the file smaller.

    Depthwise ones, [height width 1 channels], are read as float32.
    """
    is_depthwise = array.ndim == 4 and array.shape[2] == 1
    return array.astype(dtype) if path[-1].key == "kernel" and not is_depthwise else array


def _describe(name: str, array: Any, meaning: str) -> dict[str, Any]:
    shape = [size if isinstance(size, int) else str(size) for size in array.shape]
    return {"name": name, "shape": shape, "type": np.dtype(array.dtype).name, "meaning": meaning}
