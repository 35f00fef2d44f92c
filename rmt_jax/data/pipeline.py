"""Batches from an image source, by Grain: the batch of a step depends on the seed and the step, on nothing else."""

import functools
from collections.abc import Callable, Generator

import grain
import numpy as np
from absl import flags
from PIL import Image

from rmt_jax.data.config import DataConfig
from rmt_jax.data.sources import ImageSource
from rmt_jax.data.transforms import decode, eval_transform, train_transform

Batch = dict[str, np.ndarray]
Element = dict[str, np.ndarray | np.generic]


class TrainLoader:
    """Shuffled, augmented batches for one process of `process_count`.

    The global batch of step `i` is a pure function of (seed, i): whatever the number of processes, workers and threads
    and whatever the first step, picture `j` of the batch is the same. Process `p` yields the `p`-th consecutive slice.
    An epoch is `steps_per_epoch` steps over a fresh permutation: every picture at most once, the remainder dropped.

    Args:
        source: the pictures.
        config: size, augmentation, workers.
        batch_size: pictures in a global batch.
        seed: of the permutations and the augmentation, 0 <= seed < 2**32.
        process_index: which slice to yield.
        process_count: how many processes share a batch.

    Raises:
        ValueError: the batch does not divide among the processes, or is larger than the data set.
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
        if len(source) < batch_size:
            raise ValueError(
                f"{source.name} has {len(source)} pictures, fewer than one batch of batch_size={batch_size}: "
                f"choose a batch size of at most {len(source)}"
            )
        self.source = source
        self.config = config
        self.batch_size = batch_size
        self.steps_per_epoch = len(source) // batch_size
        self._seed = seed
        # Through `.seed()`, which hashes it: `shuffle(seed)` adds the epoch to the seed, and seed 1 would be seed 0 one
        # epoch later.
        self._order = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()
        self._process_index = process_index

    def batches(self, start_step: int, stop_step: int) -> Generator[Batch, None, None]:
        """The local batches of steps `start_step` .. `stop_step` - 1; close the generator to stop its workers early.

        Yields {"image": uint8 [local_batch, height, width, 3], "label": int32 [local_batch]}. With worker processes a
        call takes seconds to start: ask for a whole training run, not for an epoch.

        Raises:
            ValueError: the steps are negative or in the wrong order.
            CorruptImageError: while iterating, a picture cannot be decoded; the message names it.
        """
        if not 0 <= start_step <= stop_step:
            raise ValueError(f"start_step={start_step}, stop_step={stop_step}: expected 0 <= start_step <= stop_step")
        load = functools.partial(self._load, start_step)
        return _iterate(load, stop_step - start_step, self.local_batch_size, self.config)

    def _load(self, start_step: int, position: int) -> Element:
        """The example at a position of this process's run; called in threads and worker processes."""
        step, offset = divmod(position, self.local_batch_size)
        step, offset = step + start_step, offset + self._process_index * self.local_batch_size
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        index = self._order[epoch * len(self.source) + step_in_epoch * self.batch_size + offset]
        # The seed is the place of the picture in the whole run, so that nothing before it has to be drawn.
        rng = np.random.default_rng((self._seed, step * self.batch_size + offset))
        return _element(self.source, index, lambda image: train_transform(image, self.config, rng))


class EvalLoader:
    """Every picture once, in order, in batches of one size, for one process of `process_count`.

    The last batch is filled up with padding: mask False, black picture, label 0, index -1. Every process yields the
    same number of batches; process `p` has the `p`-th consecutive slice of each.

    Args:
        source: the pictures.
        config: size, workers.
        batch_size: pictures in a global batch.
        process_index: which slice to yield.
        process_count: how many processes share a batch.

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
        self._process_index = process_index

    def __len__(self) -> int:
        return (len(self.source) + self.batch_size - 1) // self.batch_size

    def __iter__(self) -> Generator[Batch, None, None]:
        """Yields "image" and "label" as in training, "mask" bool [local_batch], "index" int32 [local_batch]."""
        return _iterate(self._load, len(self), self.local_batch_size, self.config)

    def _load(self, position: int) -> Element:
        """The example at a position of this process's run, or padding after the last picture."""
        step, offset = divmod(position, self.local_batch_size)
        index = step * self.batch_size + self._process_index * self.local_batch_size + offset
        if index >= len(self.source):
            image = np.zeros((self.config.image_size, self.config.image_size, 3), np.uint8)
            return {"image": image, "label": np.int32(0), "mask": np.bool_(False), "index": np.int32(-1)}
        element = _element(self.source, index, lambda image: eval_transform(image, self.config))
        return {**element, "mask": np.bool_(True), "index": np.int32(index)}


def _element(source: ImageSource, index: int, transform: Callable[[Image.Image], np.ndarray]) -> Element:
    example = source[index]
    try:
        return {"image": transform(decode(example.image, example.id)), "label": np.int32(example.label)}
    except Exception as error:
        error.add_note(f"while preparing record {example.id!r} of {source.name}")
        raise


def _iterate(
    load: Callable[[int], Element], num_batches: int, local_batch_size: int, config: DataConfig
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
            grain.MultiprocessingOptions(config.num_workers, per_worker_buffer_size=config.prefetch)
        )
    )
    try:
        yield from iterator
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
