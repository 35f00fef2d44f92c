"""Batches of pictures with boxes, by Grain: random sizes and crops to train on, whole pictures to evaluate."""

import collections
from collections.abc import Generator, Iterator
from typing import Any

import numpy as np

from rmt_jax.data.batches import (
    UNREADABLE,
    Element,
    StepLoader,
    check_not_classification,
    iterate,
    noting,
)
from rmt_jax.data.config import DataConfig
from rmt_jax.data.decode import CorruptImageError
from rmt_jax.data.detection.annotations import check_trainable, training_pictures
from rmt_jax.data.detection.changes import Change
from rmt_jax.data.detection.order import CanvasOrder
from rmt_jax.data.detection.reading import read_image, read_instances, try_examples
from rmt_jax.data.detection.source import DetectionSource
from rmt_jax.data.detection.transforms import (
    Size,
    canvas_size,
    change,
    padded_size,
    place_image,
    place_instances,
    scale_factor,
)
from rmt_jax.data.eval_batches import GroupedLoader
from rmt_jax.data.interface import DetectionExample
from rmt_jax.data.resize import rescaled_size, resize_image


class DetectionTrainLoader(StepLoader[DetectionExample, Change]):
    """Shuffled, changed pictures with boxes for one process of `process_count`: see `StepLoader` and `CanvasOrder`.

    Its `batches` are those of `place_image` and `place_instances`, with a leading axis local_batch. All pictures of a
    batch are on one canvas, wide or high; a program is compiled for each. Masks are there with `data.detection.masks`.

    Attributes:
        pictures: positions in the source of those that are trained on.
        left_out: number of the other pictures, by reason.

    Raises:
        ValueError: as `StepLoader`; `config` sets an augmentation of classification; there are fewer pictures than one
            batch.
        AnnotationError: annotations do not fit their pictures or the configuration; also while iterating.
    """

    source: DetectionSource

    def __init__(
        self,
        source: DetectionSource,
        config: DataConfig,
        *,
        batch_size: int,
        seed: int,
        process_index: int = 0,
        process_count: int = 1,
    ) -> None:
        check_not_classification(config, "data.detection has what changes pictures with boxes")
        super().__init__(
            source,
            config,
            batch_size=batch_size,
            seed=seed,
            process_index=process_index,
            process_count=process_count,
        )
        detection, annotations = config.detection, source.annotations
        self.pictures, self.left_out = training_pictures(annotations)
        check_trainable(annotations, self.pictures, source.name, max_boxes=detection.max_boxes, masks=detection.masks)
        try:
            self._order = CanvasOrder(annotations.sizes[self.pictures], detection, batch_size, seed=seed)
        except ValueError as error:
            raise ValueError(f"{source.name}: {error}") from error
        try_examples(source, masks=detection.masks)

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch."""
        return self._order.steps_per_epoch

    def candidates(self, step: int, offset: int) -> Iterator[tuple[int, Change]]:
        """The picture drawn, and those after it on the same canvas."""
        for index, drawn in self._order.candidates(step, offset):
            yield int(self.pictures[index]), drawn

    def prepare(self, record: DetectionExample, draw: Change) -> Element:
        """The changed picture on its canvas, and its objects."""
        config = self.config.detection
        image, instances = read_image(record), read_instances(record, masks=config.masks)
        with noting(record.id):
            image, instances = change(image, instances, draw, flip_first=config.flip_first)
            canvas = canvas_size(draw.size, config.canvas)
            return {**place_image(image, canvas), **place_instances(instances, canvas, config.max_boxes)}


class DetectionEvalLoader(GroupedLoader[DetectionExample, Size]):
    """Every picture once and whole, in batches of one size and shape, for one process of `process_count`.

    Pictures are resized to `data.detection.eval_scale` in their own proportions and padded to multiples of 32, or to
    the training canvases with `eval_canvases`. Those of one padded shape make up batches, larger ones first. The last
    batch of each shape is filled up: mask False, black picture, index -1. Every process yields the same number of
    batches of the same shapes; process `p` has the `p`-th consecutive slice of each. A picture that cannot be decoded
    has mask False as well, and its own index.

    Objects are not in the batches: `source.annotations.data_set()` has all of them, in COCO's own form.

    Raises:
        ValueError: the batch does not divide among the processes.
        AnnotationError: annotations are of pictures of another size; also while iterating.
    """

    source: DetectionSource

    def __iter__(self) -> Generator[dict[str, Any], None, None]:
        """Yields batches whose height and width differ from one to the next.

        {those of `place_image`, "original_size": int32 [local_batch, 2], "scale_factor": float32 [local_batch, 4], how
        much wider, higher, wider and higher than that the picture is, "mask": bool [local_batch], "index": int32
        [local_batch]}

        Raises:
            TooManyUnreadableError: more pictures cannot be decoded than the configuration allows.
        """
        return iterate(self._load, len(self), self.local_batch_size, self.config, self.unreadable)

    def try_examples(self) -> None:
        """On some pictures: see the function of this name."""
        try_examples(self.source, masks=False)

    def group(self) -> dict[Size, list[int]]:
        """The pictures of each shape, larger shapes first: if memory is too small for one, the first batch says so."""
        groups: dict[Size, list[int]] = collections.defaultdict(list)
        for index, (height, width) in enumerate(self.source.annotations.sizes.tolist()):
            size = rescaled_size(height, width, self.config.detection.eval_scale)
            canvases = self.config.detection.eval_canvases
            groups[canvas_size(size, self.config.detection.canvas) if canvases else padded_size(size)].append(index)
        return {shape: groups[shape] for shape in sorted(groups, key=lambda s: (-s[0] * s[1], s))}

    def _load(self, position: int) -> Element:
        """The example at a position of this process's run, or filling."""
        shape, index = self.picture(position)
        nothing: Element = {
            **place_image(np.zeros((*shape, 3), np.uint8), shape),
            "original_size": np.array(shape, np.int32),
            "scale_factor": np.ones(4, np.float32),
            "mask": np.bool_(False),
            "index": np.int32(index),
            UNREADABLE: np.int32(-1),
        }
        if index < 0:
            return nothing
        try:
            image = read_image(self.source[index])
        except CorruptImageError:
            return {**nothing, UNREADABLE: np.int32(index)}
        height, width = image.shape[:2]
        size = rescaled_size(height, width, self.config.detection.eval_scale)
        return {
            **nothing,
            **place_image(resize_image(image, size), shape),
            "original_size": np.array([height, width], np.int32),
            "scale_factor": scale_factor((height, width), size),
            "mask": np.bool_(True),
        }
