"""Which picture goes where: the order of training, without and with repeated augmentation."""

import grain

# With repeated augmentation an epoch is cut to a multiple of this many pictures (DeiT's RASampler).
_EPOCH_UNIT = 256


class TrainingOrder:
    """The picture at every position of every batch, a pure function of seed, step and position.

    Without repeats an epoch is a fresh permutation, every picture at most once, the remainder dropped. With repeats
    every picture of the permutation comes `repeats` times in a row, the row is dealt out over `replicas` equal parts of
    the batch (part r takes places r, r + replicas, ...), and the epoch ends after as many pictures as without.
    Source: `RASampler` of DeiT, there with one replica a GPU.

    Args:
        num_pictures: of the data set.
        batch_size: pictures in a global batch.
        seed: of the permutations.
        repeats: how often a picture comes.
        replicas: parts of the batch; not read where repeats is 1.

    Raises:
        ValueError: the batch is larger than an epoch, or cannot be cut into equal parts.
    """

    def __init__(self, num_pictures: int, batch_size: int, *, seed: int, repeats: int = 1, replicas: int = 1) -> None:
        replicas = replicas if repeats > 1 else 1
        if batch_size % replicas:
            raise ValueError(
                f"batch_size={batch_size} cannot be cut into data.repeat_replicas={replicas} equal parts: choose a "
                f"divisor of {batch_size}, or data.repeats=1"
            )
        selected = num_pictures
        if repeats > 1 and num_pictures >= _EPOCH_UNIT:
            selected = num_pictures // _EPOCH_UNIT * _EPOCH_UNIT
        self._part = batch_size // replicas
        self.steps_per_epoch = selected // replicas // self._part
        if not self.steps_per_epoch:
            raise ValueError(
                f"{num_pictures} pictures are fewer than one batch of batch_size={batch_size}: choose a batch size of "
                f"at most {selected // replicas * replicas}"
            )
        self._num_pictures, self._repeats, self._replicas = num_pictures, repeats, replicas
        # Through `.seed()`, which hashes it: `shuffle(seed)` adds the epoch to the seed, and seed 1 would be seed 0 one
        # epoch later.
        self._permutations = grain.MapDataset.range(num_pictures).seed(seed).shuffle().repeat()

    def picture(self, step: int, position: int) -> int:
        """Index in the data set of the picture at a position of the global batch of a step."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        replica, place = divmod(position, self._part)
        place = (step_in_epoch * self._part + place) * self._replicas + replica
        return self._permutations[epoch * self._num_pictures + place // self._repeats]
