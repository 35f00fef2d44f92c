"""What weights make of pictures: pooled features, or maps of stages, for whatever is built on them."""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from PIL import Image

from rmt_jax.convert import Weights
from rmt_jax.models import Backbone, Classifier
from rmt_jax.training.prediction import normalized_batch, prepare

STAGES = (1, 2, 3, 4)


class FeatureExtractor:
    """Weights, ready for one batch of pictures after another.

        extractor = FeatureExtractor(read_weights("rmt_s"))
        extractor([Image.open("cat.jpg").convert("RGB")])["features"]  # float32 [1 1024]

    Pictures are prepared as for predictions: resized, their centre cropped, normalised; as for ImageNet where the
    weights do not say how. Of a segmentor or detector the backbone is taken.

    Args:
        weights: of any task.
        dtype: type to compute in.
        stages: some of 1 to 4, for their maps; none for pooled features.

    Raises:
        ValueError: no such stage.
    """

    def __init__(self, weights: Weights, *, dtype: str = "float32", stages: Sequence[int] = ()) -> None:
        if unknown := [stage for stage in stages if stage not in STAGES]:
            raise ValueError(f"stages {unknown}: there are {', '.join(map(str, STAGES))}.")
        self._preprocessing = weights.cropping
        graph, state = nnx.split(weights.to_model(dtype))
        self._state = nnx.to_pure_dict(state)
        chosen = sorted(set(stages))

        @jax.jit
        def run(state: Any, images: jax.Array) -> dict[str, jax.Array]:
            model: Any = nnx.merge(graph, state)
            maps = (model if isinstance(model, Backbone) else model.backbone)(images)
            if chosen:
                found = {f"stage{stage}": maps[stage - 1] for stage in chosen}
            elif isinstance(model, Classifier):
                found = {"features": model.forward_head(maps[-1], pre_logits=True)}
            else:
                found = {"features": maps[-1].mean(axis=(1, 2))}
            return {name: array.astype(np.float32) for name, array in found.items()}

        self._run = run

    def __call__(self, images: Iterable[Image.Image], *, batch_size: int = 32) -> dict[str, np.ndarray]:
        """What is made of pictures, in their order, float32.

        Args:
            images: 8-bit RGB of any size, one or more; asked for one after the other.
            batch_size: that is worked on at once.

        Returns:
            {"features": [pictures channels]}: of a classifier the input of its head, as wide as its projection; of
            others the mean of the last map over its positions. With stages {"stage1": [pictures height width channels],
            ...}, the backbone's maps at strides 4, 8, 16 and 32.

        Raises:
            ValueError: no pictures.
        """
        prepared = (prepare(image, self._preprocessing) for image in images)
        parts: list[dict[str, np.ndarray]] = []
        while pictures := list(itertools.islice(prepared, batch_size)):
            size = batch_size if parts else len(pictures)  # a few pictures are no reason for a large batch
            found = self._run(self._state, normalized_batch(pictures, size, self._preprocessing))
            parts.append({name: np.asarray(array[: len(pictures)]) for name, array in found.items()})
        if not parts:
            raise ValueError("There are no pictures to make features of.")
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
