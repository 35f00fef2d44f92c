"""Batches from an image source, by Grain: the batch of a step depends on the seed and the step, on nothing else."""

import functools
import logging
from collections.abc import Callable, Generator

import grain
import numpy as np
from absl import flags
from PIL import Image

from rmt_jax.data.config import DataConfig
from rmt_jax.data.decode import CorruptImageError, decode
from rmt_jax.data.label_maps import LabelMaps
from rmt_jax.data.order import TrainingOrder
from rmt_jax.data.sources import Example, ImageSource
from rmt_jax.data.transforms import eval_transform, token_label_transform, train_transform
from rmt_jax.data.workers import start_worker

Batch = dict[str, np.ndarray]
Element = dict[str, np.ndarray | np.generic]

# A record that says which picture it could not read, to the process that counts them. Never leaves this module.
_UNREADABLE = "unreadable"

# Pictures whose label map is looked for before a run starts; `rmt labels check` looks for all.
_MAPS_TRIED = 20

# So many unreadable pictures in a row are no accident: then the first one's error is raised.
_LONGEST_ROW = 100


class TooManyUnreadableError(ValueError):
    """More pictures of a split are unreadable than `data.max_unreadable` allows."""


class Unreadable:
    """The pictures of a source that could not be decoded: each counted and logged once.

    Attributes:
        ids: their record ids by index.
    """

    def __init__(self, source: ImageSource, largest_share: float) -> None:
        self.ids: dict[int, str] = {}
        self._source, self._largest_share = source, largest_share

    def __len__(self) -> int:
        return len(self.ids)

    def take_from(self, batch: Batch) -> Batch:
        """Count what a batch names, and return it without that.

        Raises:
            TooManyUnreadableError: there are more than the largest share.
        """
        for index in batch.pop(_UNREADABLE).tolist():
            if index >= 0 and index not in self.ids:
                self.ids[index] = self._source.id(index)
                logging.getLogger(__name__).warning(
                    "unreadable picture %s of %s (%d so far)", self.ids[index], self._source.name, len(self)
                )
        if len(self) > self._largest_share * len(self._source):
            named = ", ".join(list(self.ids.values())[:5])
            raise TooManyUnreadableError(
                f"{len(self)} of the {len(self._source):,} pictures of {self._source.name} are unreadable, more than "
                f"data.max_unreadable={self._largest_share:g} allows: {named}{', ...' if len(self) > 5 else ''}. Mend "
                "or remove them, or raise data.max_unreadable"
            )
        return batch


class TrainLoader:
    """Shuffled, augmented batches for one process of `process_count`.

    The global batch of step `i` is a pure function of (seed, i): whatever the number of processes, workers and threads
    and whatever the first step, picture `j` of the batch is the same. Process `p` yields the `p`-th consecutive slice.
    An epoch is `steps_per_epoch` steps over a fresh permutation, see `TrainingOrder`. A picture that cannot be decoded
    is replaced by the next one of the data set.

    Args:
        source: the pictures.
        config: size, augmentation, workers.
        batch_size: pictures in a global batch.
        seed: of the permutations and the augmentation, 0 <= seed < 2**32.
        process_index: which slice to yield.
        process_count: how many processes share a batch.

    Attributes:
        unreadable: the pictures replaced so far.

    Raises:
        ValueError: the batch does not divide among the processes or replicas, or is larger than the data set; label
            maps do not fit it.
        FileNotFoundError: there are no label maps where the configuration says.
    """

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
        self.local_batch_size = _local_batch_size(batch_size, process_index, process_count)
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed={seed}: expected 0 <= seed < 2**32")
        try:
            self._order = TrainingOrder(
                len(source), batch_size, seed=seed, repeats=config.repeats, replicas=config.repeat_replicas
            )
        except ValueError as error:
            raise ValueError(f"{source.name}: {error}") from error
        self.source = source
        self.config = config
        self.batch_size = batch_size
        self.unreadable = Unreadable(source, config.max_unreadable)
        self._label_maps = _open_label_maps(config, source)
        self._seed = seed
        self._process_index = process_index

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch."""
        return self._order.steps_per_epoch

    def batches(self, start_step: int, stop_step: int) -> Generator[Batch, None, None]:
        """The local batches of steps `start_step` .. `stop_step` - 1; close the generator to stop its workers early.

        Yields {"image": uint8 [local_batch, height, width, 3], "label": int32 [local_batch]}, for token labelling also
        what `token_label_transform` adds. With worker processes a call takes seconds to start: ask for a whole training
        run, not for an epoch.

        Raises:
            ValueError: the steps are negative or in the wrong order.
            TooManyUnreadableError: while iterating, more pictures cannot be decoded than the configuration allows.
        """
        if not 0 <= start_step <= stop_step:
            raise ValueError(f"start_step={start_step}, stop_step={stop_step}: expected 0 <= start_step <= stop_step")
        load = functools.partial(self._load, start_step)
        return _iterate(load, stop_step - start_step, self.local_batch_size, self.config, self.unreadable)

    def _load(self, start_step: int, position: int) -> Element:
        """The example at a position of this process's run; called in threads and worker processes."""
        step, offset = divmod(position, self.local_batch_size)
        step, offset = step + start_step, offset + self._process_index * self.local_batch_size
        # The seed is the place of the picture in the whole run, so that nothing before it has to be drawn.
        rng = np.random.default_rng((self._seed, step * self.batch_size + offset))
        drawn = self._order.picture(step, offset)
        for index in range(drawn, drawn + min(_LONGEST_ROW, len(self.source))):
            example = self.source[index % len(self.source)]
            try:
                element = _element(example, functools.partial(self._transform, example.id, rng))
            except CorruptImageError as error:
                problem = error
            else:
                return {**element, _UNREADABLE: np.int32(-1 if index == drawn else drawn)}
        raise problem

    def _transform(self, picture_id: str, rng: np.random.Generator, image: Image.Image) -> Element:
        if self._label_maps is None:
            return {"image": train_transform(image, self.config, rng)}
        return dict(token_label_transform(image, self._label_maps[picture_id], self.config, rng))


class EvalLoader:
    """Every picture once, in order, in batches of one size, for one process of `process_count`.

    The last batch is filled up with padding: mask False, black picture, label 0, index -1. Every process yields the
    same number of batches; process `p` has the `p`-th consecutive slice of each. A picture that cannot be decoded has
    mask False as well, a black picture, but its own label and index.

    Args:
        source: the pictures.
        config: size, workers.
        batch_size: pictures in a global batch.
        process_index: which slice to yield.
        process_count: how many processes share a batch.

    Attributes:
        unreadable: the pictures left out so far.

    Raises:
        ValueError: the batch does not divide among the processes.
    """

    def __init__(
        self,
        source: ImageSource,
        config: DataConfig,
        *,
        batch_size: int,
        process_index: int = 0,
        process_count: int = 1,
    ) -> None:
        self.local_batch_size = _local_batch_size(batch_size, process_index, process_count)
        self.source = source
        self.config = config
        self.batch_size = batch_size
        self.unreadable = Unreadable(source, config.max_unreadable)
        self._process_index = process_index

    def __len__(self) -> int:
        return (len(self.source) + self.batch_size - 1) // self.batch_size

    def __iter__(self) -> Generator[Batch, None, None]:
        """Yields "image" and "label" as in training, "mask" bool [local_batch], "index" int32 [local_batch].

        Raises:
            TooManyUnreadableError: more pictures cannot be decoded than the configuration allows.
        """
        return _iterate(self._load, len(self), self.local_batch_size, self.config, self.unreadable)

    def _load(self, position: int) -> Element:
        """The example at a position of this process's run, or padding after the last picture."""
        step, offset = divmod(position, self.local_batch_size)
        index = step * self.batch_size + self._process_index * self.local_batch_size + offset
        black = np.zeros((self.config.image_size, self.config.image_size, 3), np.uint8)
        nothing: Element = {"image": black, "mask": np.bool_(False), _UNREADABLE: np.int32(-1)}
        if index >= len(self.source):
            return {**nothing, "label": np.int32(0), "index": np.int32(-1)}
        example = self.source[index]
        nothing |= {"label": np.int32(example.label), "index": np.int32(index)}
        try:
            element = _element(example, lambda image: {"image": eval_transform(image, self.config)})
        except CorruptImageError:
            return {**nothing, _UNREADABLE: np.int32(index)}
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
    try:
        return {**transform(image), "label": np.int32(example.label)}
    except Exception as error:
        error.add_note(f"while preparing record {example.id!r}")
        raise


def _iterate(
    load: Callable[[int], Element],
    num_batches: int,
    local_batch_size: int,
    config: DataConfig,
    unreadable: Unreadable,
) -> Generator[Batch, None, None]:
    """Batches of consecutive positions, made ahead of time; leaving the loop stops threads and processes."""
    if config.num_workers and not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain's workers read absl flags, which only `absl.app.run` parses
    # Batched before the workers: Grain deals out whole batches, so the number of workers cannot change them.
    positions = grain.MapDataset.range(num_batches * local_batch_size)
    batches = positions.map(load).batch(local_batch_size)
    prefetch = 0 if config.num_workers else config.prefetch
    iterator = iter(
        batches.to_iter_dataset(grain.ReadOptions(config.num_threads, config.num_threads + prefetch)).mp_prefetch(
            grain.MultiprocessingOptions(config.num_workers, per_worker_buffer_size=config.prefetch), start_worker
        )
    )
    try:
        yield from map(unreadable.take_from, iterator)
    finally:
        iterator.close()


def _local_batch_size(batch_size: int, process_index: int, process_count: int) -> int:
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index={process_index}: expected 0 <= process_index < process_count={process_count}")
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(
            f"batch_size={batch_size} is the global batch and must be a positive multiple of the number of processes, "
            f"{process_count}: try {max(1, round(batch_size / process_count)) * process_count}"
        )
    return batch_size // process_count
