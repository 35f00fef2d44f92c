"""Which picture goes where, with and without repeated augmentation."""

import numpy as np
import pytest

from rmt_jax.data.order import TrainingOrder


def epoch(order: TrainingOrder, number: int, batch_size: int) -> np.ndarray:
    """Pictures of an epoch, [steps batch]."""
    steps = range(number * order.steps_per_epoch, (number + 1) * order.steps_per_epoch)
    return np.array([[order.picture(step, position) for position in range(batch_size)] for step in steps])


def deal(permutation: np.ndarray, replicas: int, replica: int, count: int) -> np.ndarray:
    """What DeiT's RASampler gives one GPU: each index three times, every replicas-th of them, the first `count`."""
    return np.repeat(permutation, 3)[replica::replicas][:count]


@pytest.mark.parametrize(("pictures", "batch_size", "replicas"), [(600, 32, 4), (513, 64, 16), (256, 256, 1)])
def test_repeats_are_dealt_out_like_deits_sampler(pictures: int, batch_size: int, replicas: int) -> None:
    order = TrainingOrder(pictures, batch_size, seed=1, repeats=3, replicas=replicas)
    per_replica = pictures // 256 * 256 // replicas
    part = batch_size // replicas
    assert order.steps_per_epoch == per_replica // part
    # The permutation itself, from an order that deals nothing out and repeats nothing.
    plain = TrainingOrder(pictures, pictures, seed=1)
    for number in range(2):
        ours = epoch(order, number, batch_size).reshape(-1, replicas, part)
        permutation = epoch(plain, number, pictures)[0]
        for replica in range(replicas):
            expected = deal(permutation, replicas, replica, ours.shape[0] * part)
            np.testing.assert_array_equal(ours[:, replica].ravel(), expected)


def test_the_three_copies_land_in_different_parts_of_one_batch() -> None:
    batch = epoch(TrainingOrder(512, 64, seed=0, repeats=3, replicas=16), 0, 64)[0].reshape(16, 4)
    parts = {picture: set(np.flatnonzero((batch == picture).any(axis=1))) for picture in set(batch.ravel().tolist())}
    assert sum(len(where) == 3 for where in parts.values()) >= 20
    assert len(set(batch.ravel().tolist())) == 22  # 64 places, three for each picture


def test_small_data_sets_are_not_cut() -> None:
    assert TrainingOrder(100, 10, seed=0, repeats=3, replicas=5).steps_per_epoch == 10
    assert TrainingOrder(300, 10, seed=0, repeats=3, replicas=5).steps_per_epoch == 25  # 256 of them
    assert TrainingOrder(300, 10, seed=0).steps_per_epoch == 30


def test_impossible_orders() -> None:
    with pytest.raises(ValueError, match=r"batch_size=10 cannot be cut into data\.repeat_replicas=4 equal parts"):
        TrainingOrder(100, 10, seed=0, repeats=3, replicas=4)
    with pytest.raises(ValueError, match="300 pictures are fewer than one batch of batch_size=257"):
        TrainingOrder(300, 257, seed=0, repeats=3, replicas=1)
    assert TrainingOrder(100, 10, seed=0, replicas=4).steps_per_epoch == 10  # replicas without repeats say nothing
