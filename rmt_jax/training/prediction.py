"""What weights say of a picture: classes with probabilities, or a class for every pixel."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from rmt_jax.convert import IMAGENET, Weights
from rmt_jax.data import DataConfig, SegmentationDataConfig, eval_transform
from rmt_jax.data.resize import rescaled_size, resize_image
from rmt_jax.models import Backbone, Segmentor
from rmt_jax.tasks import Segmentation, SegmentationConfig, normalize

SCALE = SegmentationDataConfig().scale


class Predictor:
    """Weights, ready for one picture after another; each new shape is compiled once.

    Args:
        weights: of a classifier or a segmentor.
        dtype: type to compute in.
        segmentation: how a segmentor predicts; its head is the weights' own.
        scale: longest and shortest side that a picture is brought to for a segmentor.

    Raises:
        ValueError: a backbone, which has no head.
    """

    def __init__(
        self,
        weights: Weights,
        *,
        dtype: str = "float32",
        segmentation: SegmentationConfig | None = None,
        scale: tuple[int, int] = SCALE,
    ) -> None:
        model = weights.to_model(dtype)
        if isinstance(model, Backbone):
            raise ValueError(f"These weights ({weights.describe()}) are of a backbone alone, which predicts nothing.")
        self.weights, self._scale = weights, scale
        self._preprocessing = weights.preprocessing or IMAGENET
        graph, state = nnx.split(model)
        self._state = nnx.to_pure_dict(state)
        self._task: Segmentation | None = None
        if isinstance(model, Segmentor):
            settings = dataclasses.replace(segmentation or SegmentationConfig(), head=model.head_name)
            mean, std = self._preprocessing.mean, self._preprocessing.std
            self._task = Segmentation(weights.config, dtype, mean, std, settings)
        task = self._task

        @jax.jit
        def run(state: Any, batch: dict[str, jax.Array]) -> jax.Array:
            model: Any = nnx.merge(graph, state)
            if task is not None:
                return task.predict(model, batch)["classes"]
            return jax.nn.softmax(model(batch["image"]), axis=-1)

        self._run = run

    @property
    def class_names(self) -> tuple[str, ...]:
        """By label; numbers where the weights do not say."""
        return self.weights.class_names or tuple(map(str, range(self.weights.config.num_classes)))

    @property
    def segments(self) -> bool:
        """Whether it predicts a class for every pixel."""
        return self._task is not None

    def probabilities(self, image: Image.Image) -> np.ndarray:
        """Of each class, float32 [classes]: a classifier's."""
        config = DataConfig("picture", **dataclasses.asdict(self._preprocessing))
        picture = jnp.asarray(eval_transform(image, config))[None]
        return np.asarray(self._run(self._state, {"image": normalize(picture, config.mean, config.std)})[0])

    def classes(self, image: Image.Image) -> np.ndarray:
        """The likeliest class of each pixel, uint8 [height width]: a segmentor's."""
        if self._task is None:
            raise ValueError(f"These weights ({self.weights.describe()}) are of a classifier, not of a segmentor.")
        height, width = image.height, image.width
        resized = resize_image(np.asarray(image), rescaled_size(height, width, self._scale))
        local = {"image": resized[None], "original_size": np.array([[height, width]], np.int32)}
        batch = {name: jnp.asarray(array) for name, array in self._task.device_batch(local).items()}
        return np.asarray(self._run(self._state, batch))[0, :height, :width]
