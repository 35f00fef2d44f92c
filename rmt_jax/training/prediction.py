"""What weights say of a picture: classes with probabilities, a class for every pixel, or objects."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from rmt_jax.convert import Preprocessing, Weights
from rmt_jax.data import DataConfig, eval_transform
from rmt_jax.data.detection.transforms import padded_size, place_image, scale_factor
from rmt_jax.data.resize import rescaled_size, resize_image
from rmt_jax.models import Backbone, Detector, Segmentor
from rmt_jax.tasks import Detection, DetectionConfig, Segmentation, SegmentationConfig, normalize
from rmt_jax.training.config import parse
from rmt_jax.training.detection import found_in
from rmt_jax.training.object_figures import Found


class Settings(NamedTuple):
    """How a segmentor or a detector predicts, as `Predictor` takes it."""

    segmentation: SegmentationConfig = SegmentationConfig()
    detection: DetectionConfig = DetectionConfig()


def run_settings(source: str | pathlib.Path, weights: Weights) -> Settings:
    """How the run predicts whose workdir weights were read from; the defaults where they are from elsewhere.

    Raises:
        ValueError: config.json has values that this version does not know.
    """
    if weights.provenance.get("layout") != "workdir":
        return Settings()
    path = pathlib.Path(source).expanduser() / "config.json"
    run = json.loads(path.read_text(encoding="utf-8"))
    parts = {part: values for part in ("segmentation", "detection") if (values := run.get(part)) is not None}
    try:
        config = parse(parts)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return Settings(config.segmentation, config.detection)


def prepare(image: Image.Image, preprocessing: Preprocessing) -> np.ndarray:
    """A picture as a classifier gets it, uint8 [image_size image_size 3]: resized, its centre cropped."""
    return eval_transform(image, DataConfig("picture", **dataclasses.asdict(preprocessing)))


def normalized_batch(pictures: Sequence[np.ndarray], size: int, preprocessing: Preprocessing) -> jax.Array:
    """What `prepare` made of pictures, as floats [size height width 3], the last ones black where there are fewer.

    One size for all batches, so that one program does for all.
    """
    batch = np.zeros((size, *pictures[0].shape), np.uint8)
    batch[: len(pictures)] = pictures
    return normalize(jnp.asarray(batch), preprocessing.mean, preprocessing.std)


class Predictor:
    """Weights, ready for one picture after another; each new shape is compiled once.

    Args:
        weights: of a classifier, a segmentor or a detector.
        dtype: type to compute in.
        segmentation: how a segmentor predicts; its head is the weights' own.
        detection: how a detector predicts; its head is the weights' own.
        scale: longest and shortest side that a picture is brought to for a segmentor or detector; None for those that
            the weights name, or else those of ADE20K or COCO.

    Raises:
        ValueError: a backbone, which has no head.
    """

    def __init__(
        self,
        weights: Weights,
        *,
        dtype: str = "float32",
        segmentation: SegmentationConfig | None = None,
        detection: DetectionConfig | None = None,
        scale: tuple[int, int] | None = None,
    ) -> None:
        model = weights.to_model(dtype)
        if isinstance(model, Backbone):
            raise ValueError(f"These weights ({weights.describe()}) are of a backbone alone, which predicts nothing.")
        self.weights = weights
        self._scale = scale
        graph, state = nnx.split(model)
        self._state = nnx.to_pure_dict(state)
        self._task: Segmentation | Detection | None = None
        if isinstance(model, Segmentor):
            how = dataclasses.replace(segmentation or SegmentationConfig(), head=model.head_name)
            self._task = Segmentation(weights.config, dtype, weights.resizing.mean, weights.resizing.std, how)
        elif isinstance(model, Detector):
            boxes = dataclasses.replace(detection or DetectionConfig(), head=model.HEAD)
            self._task = Detection(weights.config, dtype, weights.resizing.mean, weights.resizing.std, boxes)
        task = self._task

        @jax.jit
        def run(state: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
            model: Any = nnx.merge(graph, state)
            if task is not None:
                return task.predict(model, batch)
            return {"probabilities": jax.nn.softmax(model(batch["image"]), axis=-1)}

        self._run = run

    @property
    def class_names(self) -> tuple[str, ...]:
        """By label; numbers where the weights do not say."""
        return self.weights.class_names or tuple(map(str, range(self.weights.config.num_classes)))

    @property
    def segments(self) -> bool:
        """Whether it predicts a class for every pixel."""
        return isinstance(self._task, Segmentation)

    @property
    def detects(self) -> bool:
        """Whether it predicts objects."""
        return isinstance(self._task, Detection)

    def probabilities(self, image: Image.Image) -> np.ndarray:
        """Of each class, float32 [classes]: a classifier's."""
        return self.batch_probabilities([self.prepare(image)], 1)[0]

    def prepare(self, image: Image.Image) -> np.ndarray:
        """A picture for `batch_probabilities`, uint8 [image_size image_size 3]."""
        return prepare(image, self.weights.cropping)

    def batch_probabilities(self, pictures: Sequence[np.ndarray], size: int) -> np.ndarray:
        """Of each class, float32 [pictures classes]: a classifier's.

        Args:
            pictures: what `prepare` made, one or more.
            size: of the batch, as many or more; each size is compiled once.
        """
        if self._task is not None:
            raise ValueError(f"These weights ({self.weights.describe()}) are not of a classifier.")
        batch = {"image": normalized_batch(pictures, size, self.weights.cropping)}
        return np.asarray(self._run(self._state, batch)["probabilities"][: len(pictures)])

    def classes(self, image: Image.Image) -> np.ndarray:
        """The likeliest class of each pixel, uint8 [height width]: a segmentor's."""
        if not isinstance(self._task, Segmentation):
            raise ValueError(f"These weights ({self.weights.describe()}) are not of a segmentor.")
        height, width = image.height, image.width
        resized = resize_image(np.asarray(image), self._size(height, width))
        local = {"image": resized[None], "original_size": np.array([[height, width]], np.int32)}
        batch = {name: jnp.asarray(array) for name, array in self._task.device_batch(local).items()}
        return np.asarray(self._run(self._state, batch)["classes"])[0, :height, :width]

    def objects(self, image: Image.Image) -> Found:
        """What is found, by decreasing score, in pixels of the picture: a detector's."""
        if not isinstance(self._task, Detection):
            raise ValueError(f"These weights ({self.weights.describe()}) are not of a detector.")
        height, width = image.height, image.width
        size = self._size(height, width)
        placed = place_image(resize_image(np.asarray(image), size), padded_size(size))
        placed["scale_factor"] = scale_factor((height, width), size)
        outputs = self._run(self._state, {name: jnp.asarray(array[None]) for name, array in placed.items()})
        return found_in(jax.device_get(outputs), 0, (height, width))

    def _size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that a picture is brought to, in its own proportions."""
        return rescaled_size(height, width, self._scale or self.weights.resizing.scale)
