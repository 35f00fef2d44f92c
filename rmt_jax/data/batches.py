"""What all loaders share: where a picture of a step comes from, making batches ahead, counting unreadable pictures."""

import abc
import contextlib
import functools
import itertools
import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, Generic, TypeVar

import grain
import numpy as np
from absl import flags

from rmt_jax.data.config import AugmentConfig, DataConfig, TokenLabelsConfig
from rmt_jax.data.decode import CorruptImageError
from rmt_jax.data.interface import RecordT, Source
from rmt_jax.data.order import TrainingOrder
from rmt_jax.data.workers import start_worker

Batch = dict[str, np.ndarray]
Element = dict[str, np.ndarray | np.generic]

# What is random of a training picture: a generator that draws it, or what was drawn.
DrawT = TypeVar("DrawT")

# In an element, which picture could not be read, for the process that counts them; -1 is none. Not in what is yielded.
UNREADABLE = "unreadable"

# So many unreadable pictures in a row are no accident: then the first one's error is raised.
_LONGEST_ROW = 100


class TooManyUnreadableError(ValueError):
    """More pictures of a split are unreadable than `data.max_unreadable` allows."""


class Unreadable:
    """The pictures of a source that could not be decoded: each counted and logged once.

    Attributes:
        ids: their record ids by index.
    """

    def __init__(self, source: Source[Any], largest_share: float) -> None:
        self.ids: dict[int, str] = {}
        self._source, self._largest_share = source, largest_share

    def __len__(self) -> int:
        return len(self.ids)

    def add(self, indices: Sequence[int]) -> None:
        """Count pictures; -1 is none.

        Raises:
            TooManyUnreadableError: there are more than the largest share.
        """
        for index in indices:
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

    def take_from(self, batch: Batch) -> Batch:
        """Count what a batch names, and return it without that.

        Raises:
            TooManyUnreadableError: there are more than the largest share.
        """
        self.add(batch.pop(UNREADABLE).tolist())
        return batch


class StepLoader(abc.ABC, Generic[RecordT, DrawT]):
    """Batches of training steps for one process of `process_count`; in which order and what of, a subclass says.

    The global batch of step `i` is a pure function of (seed, i): whatever the number of processes, workers and threads
    and whatever the first step, picture `j` of the batch is the same. Process `p` yields the `p`-th consecutive slice.
    An epoch is `steps_per_epoch` steps. A picture that cannot be decoded is replaced by another.

    Args:
        source: the pictures.
        config: size, augmentation, workers.
        batch_size: pictures in a global batch.
        seed: of the order and the augmentation, 0 <= seed < 2**32.
        process_index: which slice to yield.
        process_count: how many processes share a batch.

    Attributes:
        unreadable: the pictures replaced so far.

    Raises:
        ValueError: the batch does not divide among the processes.
    """

    def __init__(
        self,
        source: Source[RecordT],
        config: DataConfig,
        *,
        batch_size: int,
        seed: int,
        process_index: int = 0,
        process_count: int = 1,
    ) -> None:
        self.local_batch_size = local_batch_size(batch_size, process_index, process_count)
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed={seed}: expected 0 <= seed < 2**32")
        self.source: Source[RecordT] = source
        self.config = config
        self.batch_size = batch_size
        self.unreadable = Unreadable(source, config.max_unreadable)
        self._seed = seed
        self._process_index = process_index

    @property
    @abc.abstractmethod
    def steps_per_epoch(self) -> int:
        """Batches in an epoch."""

    @abc.abstractmethod
    def candidates(self, step: int, offset: int) -> Iterator[tuple[int, DrawT]]:
        """The picture at a place of a global batch and what is random of it, and then those that may replace it."""

    @abc.abstractmethod
    def prepare(self, record: RecordT, draw: DrawT) -> Element:
        """A record, decoded and augmented; called in threads and worker processes.

        Raises:
            CorruptImageError: it cannot be decoded.
        """

    def batches(self, start_step: int, stop_step: int) -> Generator[Batch, None, None]:
        """The local batches of steps `start_step` .. `stop_step` - 1; close the generator to stop its workers early.

        With worker processes a call takes seconds to start: ask for a whole training run, not for an epoch.

        Raises:
            ValueError: the steps are negative or in the wrong order.
            TooManyUnreadableError: while iterating, more pictures cannot be decoded than the configuration allows.
        """
        if not 0 <= start_step <= stop_step:
            raise ValueError(f"start_step={start_step}, stop_step={stop_step}: expected 0 <= start_step <= stop_step")
        load = functools.partial(self._load, start_step)
        return iterate(load, stop_step - start_step, self.local_batch_size, self.config, self.unreadable)

    def _load(self, start_step: int, position: int) -> Element:
        """The example at a position of this process's run; called in threads and worker processes."""
        step, offset = divmod(position, self.local_batch_size)
        step, offset = step + start_step, offset + self._process_index * self.local_batch_size
        drawn = None
        for index, draw in itertools.islice(self.candidates(step, offset), _LONGEST_ROW):
            record = self.source[index]
            drawn = index if drawn is None else drawn
            try:
                element = self.prepare(record, draw)
            except CorruptImageError as error:
                problem = error
            else:
                return {**element, UNREADABLE: np.int32(-1 if index == drawn else drawn)}
        raise problem


class ShuffledLoader(StepLoader[RecordT, np.random.Generator]):
    """All pictures in one order: an epoch is a fresh permutation, see `TrainingOrder`; the next one is the replacement.

    Raises:
        ValueError: as `StepLoader`; the batch does not divide among the replicas, or is larger than the data set.
    """

    def __init__(
        self,
        source: Source[RecordT],
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
        try:
            self._order = TrainingOrder(
                len(source), batch_size, seed=seed, repeats=config.repeats, replicas=config.repeat_replicas
            )
        except ValueError as error:
            raise ValueError(f"{source.name}: {error}") from error

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch."""
        return self._order.steps_per_epoch

    def candidates(self, step: int, offset: int) -> Iterator[tuple[int, np.random.Generator]]:
        """The picture drawn, and those after it in the data set."""
        # The seed is the place of the picture in the whole run, so that nothing before it has to be drawn.
        rng = np.random.default_rng((self._seed, step * self.batch_size + offset))
        drawn = self._order.picture(step, offset)
        for index in range(drawn, drawn + len(self.source)):
            yield index % len(self.source), rng


def check_not_classification(config: DataConfig, instead: str) -> None:
    """Raise ValueError where augmentation of classification is set, which only its loader reads.

    instead: the keys that the task reads.
    """
    plain = (AugmentConfig(), 1, TokenLabelsConfig())
    if (config.augment, config.repeats, config.token_labels) != plain:
        raise ValueError(
            "data.augment, data.repeats and data.token_labels are for classification, and would not be read: leave "
            f"them out; {instead}"
        )


@contextlib.contextmanager
def noting(record_id: str) -> Iterator[None]:
    """Errors of what is done inside say which record it was done to."""
    try:
        yield
    except Exception as error:
        error.add_note(f"while preparing record {record_id!r}")
        raise


def iterate(
    load: Callable[[int], Element],
    num_batches: int,
    batch_size: int,
    config: DataConfig,
    unreadable: Unreadable,
    stack: Callable[[Sequence[Element]], Batch] | None = None,
) -> Generator[Batch, None, None]:
    """Batches of consecutive positions, made ahead of time; leaving the loop stops threads and processes.

    stack: makes a batch of elements; None stacks them along a new first axis.
    """
    if config.num_workers and not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain's workers read absl flags, which only `absl.app.run` parses
    # Batched before the workers: Grain deals out whole batches, so the number of workers cannot change them.
    positions = grain.MapDataset.range(num_batches * batch_size)
    batches = positions.map(load).batch(batch_size, batch_fn=stack)
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


def local_batch_size(batch_size: int, process_index: int, process_count: int) -> int:
    """Pictures of a global batch that one process loads.

    Raises:
        ValueError: the batch does not divide among the processes.
    """
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index={process_index}: expected 0 <= process_index < process_count={process_count}")
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(
            f"batch_size={batch_size} is the global batch and must be a positive multiple of the number of processes, "
            f"{process_count}: try {max(1, round(batch_size / process_count)) * process_count}"
        )
    return batch_size // process_count
