"""Batches of labelled pictures from an image source, by Grain."""

import functools
from collections.abc import Callable, Generator

import numpy as np
from PIL import Image

from rmt_jax.data.batches import UNREADABLE, Batch, Element, ShuffledLoader, iterate, noting
from rmt_jax.data.config import DataConfig
from rmt_jax.data.decode import CorruptImageError, decode
from rmt_jax.data.eval_batches import EvaluationLoader
from rmt_jax.data.label_maps import LabelMaps
from rmt_jax.data.sources import Example, ImageSource
from rmt_jax.data.transforms import eval_transform, token_label_transform, train_transform

# Pictures whose label map is looked for before a run starts; `rmt labels check` looks for all.
_MAPS_TRIED = 20


class TrainLoader(ShuffledLoader[Example]):
    """Shuffled, augmented batches for one process of `process_count`: see `ShuffledLoader`.

    Its `batches` are {"image": uint8 [local_batch, height, width, 3], "label": int32 [local_batch]}, for token
    labelling also what `token_label_transform` adds.

    Raises:
        ValueError: as `ShuffledLoader`; label maps do not fit the data set.
        FileNotFoundError: there are no label maps where the configuration says.
    """

    source: ImageSource

    def __init__(
        self,
        source: ImageSource,
        config: DataConfig,
        *,
        batch_size: int,
        seed: int,
        process_index: int = 0,
        process_count: int = 1,
    ) -> None:
        super().__init__(
            source,
            config,
            batch_size=batch_size,
            seed=seed,
            process_index=process_index,
            process_count=process_count,
        )
        self._label_maps = _open_label_maps(config, source)

    def prepare(self, record: Example, rng: np.random.Generator) -> Element:
        """A training picture, and its label."""
        return _element(record, functools.partial(self._transform, record.id, rng))

    def _transform(self, picture_id: str, rng: np.random.Generator, image: Image.Image) -> Element:
        if self._label_maps is None:
            return {"image": train_transform(image, self.config, rng)}
        return dict(token_label_transform(image, self._label_maps[picture_id], self.config, rng))


class EvalLoader(EvaluationLoader[Example]):
    """Every picture once, in order: see `EvaluationLoader`.

    The last batch is filled up with padding: mask False, black picture, label 0, index -1. A picture that cannot be
    decoded has mask False as well, a black picture, but its own label and index.
    """

    source: ImageSource

    def __len__(self) -> int:
        return (len(self.source) + self.batch_size - 1) // self.batch_size

    def __iter__(self) -> Generator[Batch, None, None]:
        """Yields "image" and "label" as in training, "mask" bool [local_batch], "index" int32 [local_batch].

        Raises:
            TooManyUnreadableError: more pictures cannot be decoded than the configuration allows.
        """
        return iterate(self._load, len(self), self.local_batch_size, self.config, self.unreadable)

    def _load(self, position: int) -> Element:
        """The example at a position of this process's run, or padding after the last picture."""
        step, offset = divmod(position, self.local_batch_size)
        index = step * self.batch_size + self._first + offset
        black = np.zeros((self.config.image_size, self.config.image_size, 3), np.uint8)
        nothing: Element = {"image": black, "mask": np.bool_(False), UNREADABLE: np.int32(-1)}
        if index >= len(self.source):
            return {**nothing, "label": np.int32(0), "index": np.int32(-1)}
        example = self.source[index]
        nothing |= {"label": np.int32(example.label), "index": np.int32(index)}
        try:
            element = _element(example, lambda image: {"image": eval_transform(image, self.config)})
        except CorruptImageError:
            return {**nothing, UNREADABLE: np.int32(index)}
        return {**nothing, **element, "mask": np.bool_(True)}


def _open_label_maps(config: DataConfig, source: ImageSource) -> LabelMaps | None:
    """The label maps of the configuration; that they cover the source is tried on some of its pictures.

    Raises:
        FileNotFoundError, ValueError: see `LabelMaps`.
    """
    if config.token_labels.file is None:
        return None
    maps = LabelMaps(config.token_labels.file)
    for index in np.linspace(0, len(source) - 1, _MAPS_TRIED).astype(np.int64).tolist():
        maps[source.id(index)]
    if maps.num_classes > source.num_classes:
        raise ValueError(
            f"the label maps of {maps.path} name {maps.num_classes} classes, {source.name} has {source.num_classes}"
        )
    return maps


def _element(example: Example, transform: Callable[[Image.Image], Element]) -> Element:
    """A picture, decoded and transformed, and its label.

    Raises:
        CorruptImageError: it cannot be decoded.
    """
    image = decode(example.image, example.id)
    with noting(example.id):
        return {**transform(image), "label": np.int32(example.label)}
