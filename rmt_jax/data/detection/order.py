"""Which picture goes where, so that all pictures of a batch lie on one canvas."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from rmt_jax.data.detection.changes import Change, Changes, draw_changes
from rmt_jax.data.detection_config import DetectionDataConfig


@dataclasses.dataclass(frozen=True)
class _Epoch:
    """Attributes:
    pictures: int64 [pictures], a permutation.
    changes: of each of these.
    groups: places in the permutation of the pictures of each canvas, in its order.
    batches: of each step, the group, and where in it the batch begins; int64 [steps 2].
    """

    pictures: np.ndarray
    changes: Changes
    groups: tuple[np.ndarray, ...]
    batches: np.ndarray


class CanvasOrder:
    """The picture at every place of every batch, and its change, a pure function of seed, step and place.

    An epoch is a fresh permutation. Its pictures are dealt to the canvas that they lie on after their changes, and
    batches of all canvases come in random order. The last batch of a canvas is filled up with its first pictures of the
    epoch. An epoch has as many steps as the pictures need at least; where two such last batches would make it one more,
    one of them is left out, the fuller one the more rarely.

    Source: mmdet `DistributedGroupSampler`, which groups pictures by their shape before the changes, and whose epochs
    have a step more where two last batches make one.

    Args:
        sizes: int [pictures 2], height and width.
        config: canvases and changes.
        batch_size: pictures in a global batch.
        seed: of everything.

    Attributes:
        steps_per_epoch: batches in an epoch.

    Raises:
        ValueError: the batch is larger than the data set.
    """

    def __init__(self, sizes: np.ndarray, config: DetectionDataConfig, batch_size: int, *, seed: int) -> None:
        if batch_size > len(sizes):
            raise ValueError(
                f"{len(sizes)} pictures are fewer than one batch of batch_size={batch_size}: choose a batch size of at "
                f"most {len(sizes)}"
            )
        self.steps_per_epoch = -(-len(sizes) // batch_size)
        self._sizes, self._config, self._batch_size, self._seed = sizes, config, batch_size, seed
        self._epochs: dict[int, _Epoch] = {}

    def candidates(self, step: int, place: int) -> Iterator[tuple[int, Change]]:
        """The picture at a place of the global batch of a step and its change, then those after it on this canvas."""
        number, step_in_epoch = divmod(step, self.steps_per_epoch)
        epoch = self._epoch(number)
        group_number, first = epoch.batches[step_in_epoch].tolist()
        group = epoch.groups[group_number]
        for ahead in range(len(group)):
            index = int(group[(first + place + ahead) % len(group)])
            yield int(epoch.pictures[index]), epoch.changes[index]

    def _epoch(self, number: int) -> _Epoch:
        """Two are kept: threads may be on both sides of an epoch's end."""
        epoch = self._epochs.get(number)
        if epoch is None:
            epoch = self._draw(number)
            self._epochs = {**{k: v for k, v in self._epochs.items() if k in (number - 1, number + 1)}, number: epoch}
        return epoch

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "_epochs": {}}

    def _draw(self, number: int) -> _Epoch:
        rng = np.random.default_rng((self._seed, number))
        pictures = rng.permutation(len(self._sizes))
        changes = draw_changes(self._sizes[pictures], self._config, rng)
        longest, shortest = self._config.canvas
        wide = (changes.size[:, 1] > changes.size[:, 0]) | (longest == shortest)
        groups = np.flatnonzero(wide), np.flatnonzero(~wide)
        counts = [-(-len(group) // self._batch_size) for group in groups]
        if sum(counts) > self.steps_per_epoch:
            last = np.array([len(group) % self._batch_size for group in groups])
            counts[rng.choice(2, p=last[::-1] / last.sum())] -= 1
        batches = [(group, batch * self._batch_size) for group in (0, 1) for batch in range(counts[group])]
        return _Epoch(pictures, changes, groups, rng.permutation(np.array(batches)))
