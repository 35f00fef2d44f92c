"""What the loaders of evaluation share: every picture once, and batches of pictures of one shape."""

import abc
from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar

import numpy as np

from rmt_jax.data.batches import Unreadable, local_batch_size
from rmt_jax.data.config import DataConfig
from rmt_jax.data.interface import RecordT, Source

GroupT = TypeVar("GroupT")


class EvaluationLoader(abc.ABC, Generic[RecordT]):
    """Every picture once, in batches of one size, for one process of `process_count`.

    Every process yields the same number of batches; process `p` has the `p`-th consecutive slice of each.

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
        source: Source[RecordT],
        config: DataConfig,
        *,
        batch_size: int,
        process_index: int = 0,
        process_count: int = 1,
    ) -> None:
        self.local_batch_size = local_batch_size(batch_size, process_index, process_count)
        self.source: Source[RecordT] = source
        self.config = config
        self.batch_size = batch_size
        self.unreadable = Unreadable(source, config.max_unreadable)
        self._first = process_index * self.local_batch_size

    @abc.abstractmethod
    def __len__(self) -> int:
        """Batches of a pass."""


class GroupedLoader(EvaluationLoader[RecordT], Generic[RecordT, GroupT]):
    """Pictures of one shape together, larger shapes first; the last batch of each is filled up.

    Arguments and errors are those of `EvaluationLoader`.

    Attributes:
        shapes: number of pictures by the shapes of their batches, in the order of the batches. A model is compiled for
            each.
    """

    def __init__(
        self,
        source: Source[RecordT],
        config: DataConfig,
        *,
        batch_size: int,
        **processes: int,
    ) -> None:
        super().__init__(source, config, batch_size=batch_size, **processes)
        self.try_examples()
        groups = self.group()
        self.shapes = {shape: len(indices) for shape, indices in groups.items()}
        self._batches = plan_batches(groups, batch_size)

    def __len__(self) -> int:
        return len(self._batches)

    @abc.abstractmethod
    def try_examples(self) -> None:
        """Raise an error where annotations do not fit some of the pictures."""

    @abc.abstractmethod
    def group(self) -> dict[GroupT, list[int]]:
        """The pictures of each shape, larger shapes first: if memory is too small for one, the first batch says so."""

    def picture(self, position: int) -> tuple[GroupT, int]:
        """(shape, picture) at a position of this process's run; -1 for no picture, but filling."""
        step, offset = divmod(position, self.local_batch_size)
        shape, indices = self._batches[step]
        return shape, int(indices[self._first + offset])


def plan_batches(groups: Mapping[GroupT, Sequence[int]], batch_size: int) -> list[tuple[GroupT, np.ndarray]]:
    """Batches of one group each, with the positions of their pictures: the last one of a group is filled up with -1."""
    batches = []
    for group, indices in groups.items():
        for start in range(0, len(indices), batch_size):
            taken = np.full(batch_size, -1)
            part = indices[start : start + batch_size]
            taken[: len(part)] = part
            batches.append((group, taken))
    return batches
