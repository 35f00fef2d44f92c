"""Random erasing: which pictures, which boxes, which noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from rmt_jax.ops import random_erasing

SIZE = 32
COUNT = 4096


@pytest.fixture(scope="module")
def erased() -> np.ndarray:
    """Pictures of sevens, which no noise reaches."""
    run = jax.jit(lambda key: random_erasing(key, jnp.full((COUNT, SIZE, SIZE, 3), 7.0), 0.25))
    return np.asarray(run(jax.random.key(0)))


@pytest.fixture(scope="module")
def boxes(erased: np.ndarray) -> np.ndarray:
    """(top, left, height, width) of the erased boxes."""
    found = []
    for changed in (erased != 7).all(axis=-1):
        rows, columns = changed.any(axis=1).nonzero()[0], changed.any(axis=0).nonzero()[0]
        if len(rows):
            found.append((rows[0], columns[0], rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1))
            assert changed.sum() == found[-1][2] * found[-1][3], "not one full box"
    return np.array(found)


def test_a_quarter_of_the_pictures_lose_a_box(erased: np.ndarray, boxes: np.ndarray) -> None:
    assert abs(len(boxes) / COUNT - 0.25) < 5 * np.sqrt(0.25 * 0.75 / COUNT)
    assert ((erased != 7).any(axis=-1) == (erased != 7).all(axis=-1)).all()  # all channels together


def test_area_and_aspect(boxes: np.ndarray) -> None:
    height, width = boxes[:, 2], boxes[:, 3]
    area = height * width / SIZE**2
    # Rounding sides of 4 pixels and more moves an area of 2 % by a fifth at most.
    assert area.min() > 0.015
    assert 0.3 < area.max() < 0.36
    assert abs(area.mean() - (0.02 + 1 / 3) / 2) < 0.015  # the draws that do not fit are among the largest
    logs = np.log(height / width)
    assert abs(logs.mean()) < 0.1  # symmetric
    assert logs.min() < -0.9
    assert logs.max() > 0.9
    assert abs(logs.std() - np.log(1 / 0.3) / np.sqrt(3)) < 0.08  # uniform
    assert height.max() < SIZE
    assert width.max() < SIZE


def test_places_are_uniform(boxes: np.ndarray) -> None:
    for start, length in ((boxes[:, 0], boxes[:, 2]), (boxes[:, 1], boxes[:, 3])):
        place = start / (SIZE - length)
        assert (place.min(), place.max()) == (0, 1)
        assert abs(place.mean() - 0.5) < 0.05


def test_noise_is_normal_and_differs_everywhere(erased: np.ndarray) -> None:
    noise = erased[(erased != 7).all(axis=-1)]  # [pixels 3]
    assert abs(noise.mean()) < 0.01
    assert abs(noise.std() - 1) < 0.01
    assert (noise[:, 0] != noise[:, 1]).mean() > 0.999  # colours are drawn one by one
    assert (noise[1:] != noise[:-1]).mean() > 0.999  # and so are pixels


ERASE = jax.jit(random_erasing, static_argnums=2)


@pytest.mark.parametrize(("probability", "share"), [(0.0, 0.0), (1.0, 1.0)])
def test_never_and_always(probability: float, share: float) -> None:
    images = ERASE(jax.random.key(3), jnp.full((64, SIZE, SIZE, 3), 7.0), probability)
    assert (np.asarray(images) != 7).any(axis=(1, 2, 3)).mean() == share


def test_the_first_draw_that_fits_counts() -> None:
    """In a flat picture one draw in four fits; that one of ten does has a probability of 0.946 (simulated)."""
    images = np.asarray(ERASE(jax.random.key(4), jnp.full((512, 6, 64, 3), 7.0), 1.0))
    erased = (images != 7).any(axis=(1, 2, 3)).mean()
    assert abs(erased - 0.946) < 5 * np.sqrt(0.946 * 0.054 / 512)


def test_sharded_and_unsharded_are_the_same() -> None:
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    images = jnp.zeros((16, SIZE, SIZE, 3))
    sharded = ERASE(jax.random.key(5), jax.device_put(images, NamedSharding(mesh, PartitionSpec("data"))), 0.5)
    np.testing.assert_array_equal(sharded, ERASE(jax.random.key(5), images, 0.5))
