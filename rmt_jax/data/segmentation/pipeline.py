"""Batches of pictures with label maps, by Grain: random crops to train on, whole pictures to evaluate."""

import collections
import concurrent.futures
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np

from rmt_jax.data.batches import (
    UNREADABLE,
    Element,
    ShuffledLoader,
    check_not_classification,
    iterate,
    noting,
)
from rmt_jax.data.config import DataConfig
from rmt_jax.data.decode import CorruptImageError
from rmt_jax.data.eval_batches import GroupedLoader
from rmt_jax.data.interface import SegmentationExample, SegmentationSource
from rmt_jax.data.resize import rescaled_size, resize_image
from rmt_jax.data.segmentation.labels import IGNORE_LABEL, read_example, try_examples
from rmt_jax.data.segmentation.transforms import train_transform

Shapes = tuple[tuple[int, int], ...]  # (height, width) for each ratio

# Files whose headers are read at once: on a network drive each takes a while, and no processor.
_HEADER_THREADS = 16


class SegmentationTrainLoader(ShuffledLoader[SegmentationExample]):
    """Shuffled, augmented crops for one process of `process_count`: see `ShuffledLoader`.

    Its `batches` are {"image": uint8 [local_batch, height, width, 3], "label": uint8 [local_batch, height, width], a
    class or 255, "picture_size": int32 [local_batch, 2]}, where height and width are `data.segmentation.crop_size` and
    a picture that is smaller lies in the top left corner, its own height and width being the `picture_size`.

    Raises:
        ValueError: as `ShuffledLoader`; `config` sets an augmentation of classification.
        LabelMapError: label maps do not fit their pictures or the classes; also while iterating.
    """

    source: SegmentationSource

    def __init__(
        self,
        source: SegmentationSource,
        config: DataConfig,
        *,
        batch_size: int,
        seed: int,
        process_index: int = 0,
        process_count: int = 1,
    ) -> None:
        check_not_classification(config, "data.segmentation has what changes pictures with label maps")
        super().__init__(
            source,
            config,
            batch_size=batch_size,
            seed=seed,
            process_index=process_index,
            process_count=process_count,
        )
        try_examples(source, reduced=config.segmentation.reduce_zero_label)

    def prepare(self, record: SegmentationExample, rng: np.random.Generator) -> Element:
        """A random crop, and its labels."""
        reduced = self.config.segmentation.reduce_zero_label
        image, labels = read_example(record, self.source.num_classes, reduced=reduced)
        with noting(record.id):
            return dict(train_transform(image, labels, self.config.segmentation, rng))


class SegmentationEvalLoader(GroupedLoader[SegmentationExample, Shapes]):
    """Every picture once and whole, in batches of one size and shape, for one process of `process_count`.

    Pictures are resized to `data.segmentation.scale`, times each of `eval_ratios`, in their own proportions, and those
    of the same shapes make up batches, larger ones first. The last batch of each shape is filled up: mask False, black
    picture, label 255, index -1. Every process yields the same number of batches of the same shapes; process `p` has
    the `p`-th consecutive slice of each. A picture that cannot be decoded has mask False as well, and its own index;
    one without a readable header is in no batch.

    Making one reads the header of every picture, in threads.

    Raises:
        ValueError: the batch does not divide among the processes.
        LabelMapError: label maps do not fit their pictures or the classes; also while iterating.
        TooManyUnreadableError: more pictures have no header than the configuration allows.
    """

    source: SegmentationSource

    def __iter__(self) -> Generator[dict[str, Any], None, None]:
        """Yields batches of height x width that differ from one to the next.

        {"image": uint8 [local_batch, height, width, 3], "image_1", ... for further ratios, "label": a list of uint8
        [original height, original width], a class or 255, "original_size": int32 [local_batch, 2], "mask": bool
        [local_batch], "index": int32 [local_batch]}

        Raises:
            TooManyUnreadableError: more pictures cannot be decoded than the configuration allows.
        """
        return iterate(self._load, len(self), self.local_batch_size, self.config, self.unreadable, _stack)

    def try_examples(self) -> None:
        """On some pictures: see the function of this name."""
        try_examples(self.source, reduced=self.config.segmentation.reduce_zero_label)

    def group(self) -> dict[Shapes, list[int]]:
        """The pictures of each shape, larger shapes first: if memory is too small for one, the first batch says so."""
        with concurrent.futures.ThreadPoolExecutor(_HEADER_THREADS) as threads:
            shapes = list(threads.map(self._shape, range(len(self.source))))
        self.unreadable.add([index for index, shape in enumerate(shapes) if shape is None])
        groups: dict[Shapes, list[int]] = collections.defaultdict(list)
        for index, shape in enumerate(shapes):
            if shape is not None:
                groups[shape].append(index)
        return {shape: groups[shape] for shape in sorted(groups, key=lambda s: (-s[0][0] * s[0][1], s))}

    def _shape(self, index: int) -> Shapes | None:
        """Heights and widths that a picture is resized to; None if it has no readable header."""
        longest, shortest = self.config.segmentation.scale
        try:
            size = self.source.size(index)
        except CorruptImageError:
            return None
        scales = [(int(longest * ratio), int(shortest * ratio)) for ratio in self.config.segmentation.eval_ratios]
        return tuple(rescaled_size(*size, scale) for scale in scales)

    def _load(self, position: int) -> Element:
        """The example at a position of this process's run, or filling."""
        shapes, index = self.picture(position)
        names = ["image", *(f"image_{number}" for number in range(1, len(shapes)))]
        nothing: Element = {
            **{name: np.zeros((*shape, 3), np.uint8) for name, shape in zip(names, shapes, strict=True)},
            "label": np.full(shapes[0], IGNORE_LABEL, np.uint8),
            "original_size": np.array(shapes[0], np.int32),
            "mask": np.bool_(False),
            "index": np.int32(index),
            UNREADABLE: np.int32(-1),
        }
        if index < 0:
            return nothing
        reduced = self.config.segmentation.reduce_zero_label
        try:
            image, labels = read_example(self.source[index], self.source.num_classes, reduced=reduced)
        except CorruptImageError:
            return {**nothing, UNREADABLE: np.int32(index)}
        return {
            **nothing,
            **{name: resize_image(image, shape) for name, shape in zip(names, shapes, strict=True)},
            "label": labels,
            "original_size": np.array(labels.shape, np.int32),
            "mask": np.bool_(True),
        }


def _stack(elements: Sequence[Element]) -> dict[str, Any]:
    """A batch of elements, in which label maps keep their sizes."""
    return {
        key: [element[key] for element in elements] if key == "label" else np.stack([e[key] for e in elements])
        for key in elements[0]
    }
