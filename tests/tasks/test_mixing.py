"""Mixup, CutMix and mix-token: by hand where a draw is known, else their distributions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from rmt_jax.tasks.losses import smooth_labels
from rmt_jax.tasks.mixing import MixConfig, draw_token_boxes, mix_pictures

BOTH = MixConfig(mixup=0.8, cutmix=1.0, group=2)
SIZE, GROUPS = 8, 2000

MIX = jax.jit(mix_pictures, static_argnames="config")


def batch(size: int = 2 * GROUPS) -> tuple[jax.Array, jax.Array]:
    """Pictures of zeros and of ones in turn, each a group of two, with two classes."""
    labels = jnp.arange(size) % 2
    images = jnp.broadcast_to(labels[:, None, None, None].astype(jnp.float32), (size, SIZE, SIZE, 1))
    return images, smooth_labels(labels, 2, 0.1)


def mixed(config: MixConfig, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(share of ones in every pixel of the first of each group, weight of its own label)."""
    images, targets = MIX(jax.random.key(seed), *batch(), config=config)
    images, targets = np.asarray(images), np.asarray(targets)
    np.testing.assert_allclose(images[::2] + images[1::2], 1, atol=1e-6)  # partners of each other
    np.testing.assert_allclose(targets[::2], targets[1::2, ::-1], atol=1e-6)
    np.testing.assert_allclose(targets.sum(axis=-1), 1, atol=1e-6)
    return images[::2, ..., 0], (targets[::2, 0] - 0.05) / 0.9  # without the smoothing: off 0.1 / 2, on 0.95


def is_cutmix(images: np.ndarray) -> np.ndarray:
    """Which groups have pixels of one picture or the other only."""
    return ((images == 0) | (images == 1)).all(axis=(1, 2))


def test_targets_follow_the_pixels() -> None:
    images, own = mixed(BOTH)
    np.testing.assert_allclose(own, 1 - images.mean(axis=(1, 2)), atol=1e-5)  # CutMix's after the clipping


def test_half_are_cutmix_and_none_is_left_alone() -> None:
    images, own = mixed(BOTH)
    assert abs(is_cutmix(images).mean() - 0.5) < 5 * 0.5 / np.sqrt(GROUPS)
    weights = own[~is_cutmix(images)]
    assert len(np.unique(weights.round(6))) > 0.98 * len(weights)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_one_of_the_two_by_share(share: float) -> None:
    assert is_cutmix(mixed(dataclasses.replace(BOTH, cutmix_share=share))[0]).mean() == pytest.approx(share, abs=0.01)


@pytest.mark.parametrize(("alpha", "variance"), [(0.8, 1 / (4 * 2.6)), (0.2, 1 / (4 * 1.4))])
def test_mixup_weights_are_from_beta(alpha: float, variance: float) -> None:
    _, own = mixed(MixConfig(mixup=alpha, group=2))
    assert abs(own.mean() - 0.5) < 5 * np.sqrt(variance / GROUPS)
    assert abs(own.var() - variance) < 0.1 * variance
    assert (own.min(), own.max()) == (pytest.approx(0, abs=0.01), pytest.approx(1, abs=0.01))


def test_cutmix_boxes() -> None:
    images, own = mixed(MixConfig(cutmix=1.0, group=2))
    assert is_cutmix(images).all()
    rows, columns = images.any(axis=2).sum(axis=1), images.any(axis=1).sum(axis=1)
    np.testing.assert_allclose(rows * columns / SIZE**2, 1 - own, atol=1e-5)  # one box
    # Beta(1, 1): sqrt(1 - lam) * 8 is below 2 (an empty box: half a side is rounded down) with probability 1/16.
    assert abs((rows * columns == 0).mean() - 1 / 16) < 5 * np.sqrt(1 / 16 / GROUPS)
    # Clipped at the border, the share taken is smaller than the 1/2 that was drawn in the mean.
    assert 0.2 < 1 - own.mean() < 0.35


def test_probability_leaves_groups_alone() -> None:
    images, own = mixed(dataclasses.replace(BOTH, mixup=0.8, cutmix=0.0, probability=0.25))
    alone = (images == 0).all(axis=(1, 2))
    np.testing.assert_allclose(own[alone], 1, atol=1e-6)
    assert abs(alone.mean() - 0.75) < 5 * np.sqrt(0.75 * 0.25 / GROUPS)


def test_groups_draw_for_themselves_and_the_key_decides() -> None:
    config = MixConfig(mixup=0.8, group=4)
    images, targets = batch(16)
    first, again, other = (
        np.asarray(MIX(jax.random.key(seed), images, targets, config=config)[1]) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    groups = first.reshape(4, 4, 2)
    assert len(np.unique(groups[:, 0, 0])) == 4
    np.testing.assert_allclose(groups[:, 0], groups[:, 2], atol=1e-6)  # of one class and with one draw


def test_sharded_and_unsharded_are_the_same() -> None:
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    config = dataclasses.replace(BOTH, group=16)
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    ours = MIX(jax.random.key(2), *jax.device_put(batch(32), sharding), config=config)
    for sharded, whole in zip(ours, MIX(jax.random.key(2), *batch(32), config=config), strict=True):
        np.testing.assert_allclose(sharded, whole, atol=1e-6)


def test_token_boxes() -> None:
    boxes = np.asarray(draw_token_boxes(jax.random.key(0), 4000, 7, 7))
    height, width = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert boxes.min() == 0
    assert boxes.max() == 7
    # The share is uniform, so the side 7 * sqrt(share) is below 2, which gives an empty box, in (2/7)^2 of the draws.
    assert abs((height == 0).mean() - 4 / 49) < 5 * np.sqrt(4 / 49 / 4000)
    assert ((height == 0) == (width == 0)).all()
    assert set(height.tolist()) == {0, 1, 2, 3, 4, 5, 6}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixup": -1.0}, r"mix\.mixup=-1\.0"),
        ({"cutmix_share": 2.0}, r"mix\.cutmix_share=2\.0: expected a probability"),
        ({"group": 0}, r"mix\.group=0"),
        ({"mix_token": True, "mixup": 0.8}, "mix_token excludes"),
    ],
)
def test_impossible_mixing(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MixConfig(**changes)
