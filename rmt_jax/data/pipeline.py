"""Batches from an image source, by Grain: the batch of a step depends on the seed and the step, on nothing else."""

import dataclasses
from collections.abc import Callable, Generator, Iterator

import grain
import numpy as np

from rmt_jax.data.config import DataConfig
from rmt_jax.data.sources import ImageSource
from rmt_jax.data.transforms import decode, eval_transform, train_transform

Batch = dict[str, np.ndarray]


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
            raise ValueError(
                f"start_step={start_step}, stop_step={stop_step}: expected 0 <= start_step <= stop_step"
            )
        loads = _LoadTrain(
            self.source,
            self.config,
            seed=self._seed,
            batch_size=self.batch_size,
            local_batch_size=self.local_batch_size,
            process_index=self._process_index,
            start_step=start_step,
        )
        return _iterate(loads, stop_step - start_step, self.local_batch_size, self.config)


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
        return -(-len(self.source) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """Yields "image" and "label" as in training, "mask" bool [local_batch], "index" int32 [local_batch]."""
        load = _LoadEval(self.source, self.config, self.batch_size, self.local_batch_size, self._process_index)
        return _iterate(load, len(self), self.local_batch_size, self.config)


@dataclasses.dataclass(frozen=True)
class _LoadTrain:
    """Position in this process's run of pictures -> training example. Called in threads and worker processes."""

    source: ImageSource
    config: DataConfig
    seed: int
    batch_size: int
    local_batch_size: int
    process_index: int
    start_step: int

    def __call__(self, local: int) -> dict[str, np.ndarray | np.int32]:
        step, offset = _global_position(local, self.local_batch_size, self.process_index)
        step += self.start_step
        index = self.index(step, offset)
        example = self.source[index]
        with _naming(example.id):
        rng = np.random.default_rng((self.seed, step * self.batch_size + offset))
        image = train_transform(decode(example.image, example.id), self.config, rng)
        return {"image": image, "label": np.int32(example.label)}
