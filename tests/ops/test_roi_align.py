"""RoIAlign against samples taken one by one, and its gradient. Upstream's numbers are in tests/reference."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmt_jax.ops import multilevel_roi_align, roi_align, roi_levels
from tests.models.small import jaxtyping_disabled
from tests.ops.boxes import random_boxes

HEIGHT, WIDTH, SCALE, SIZE = 25, 33, 1 / 4, 3
BOXES = np.array(
    [
        [3.3, 5.1, 90.7, 70.2],
        [0, 0, 132, 100],  # all of the map
        [-30, -20, 60, 50],
        [100, 80, 160, 130],
        [0.2, 90.1, 130.3, 93.4],  # one sample in a bin along one axis, and eleven along the other
        [20, 20, 20, 60],  # no width
        [-200, -200, -150, -150],  # outside
    ],
    np.float32,
)


def random_map(height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal((height, width, 3)), jnp.float32)


def bilinear(x: np.ndarray, y: float, across: float) -> np.ndarray:
    """One sample, from the four positions around it."""
    height, width, channels = x.shape
    if not (-1 <= y <= height and -1 <= across <= width):
        return np.zeros(channels)
    y, across = min(max(y, 0), height - 1), min(max(across, 0), width - 1)
    top, left = int(y), int(across)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    down, over = y - top, across - left
    above = (1 - over) * x[top, left] + over * x[top, right]
    below = (1 - over) * x[bottom, left] + over * x[bottom, right]
    return (1 - down) * above + down * below


def naive(x: np.ndarray, box: np.ndarray, sampling_ratio: int) -> np.ndarray:
    left, top, right, bottom = (float(value) * SCALE - 0.5 for value in box)
    height, width = (bottom - top) / SIZE, (right - left) / SIZE
    rows, columns = (sampling_ratio or math.ceil(length) for length in (height, width))
    bins = np.zeros((SIZE, SIZE, x.shape[-1]))
    for p, q in np.ndindex(SIZE, SIZE):
        for i, j in np.ndindex(rows, columns):
            y, across = top + (p + (i + 0.5) / rows) * height, left + (q + (j + 0.5) / columns) * width
            bins[p, q] += bilinear(x, y, across) / (rows * columns)
    return bins


@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_values_and_gradients(sampling_ratio: int) -> None:
    """RoIAlign is linear in the map: its matrix, from single samples, gives the values and, transposed, gradients."""
    unit = np.eye(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH, -1)
    matrix = np.stack([naive(unit, box, sampling_ratio) for box in BOXES])
    x = random_map()

    @functools.partial(jax.jit, static_argnums=1)
    def run(x: jax.Array, chunk: int) -> jax.Array:
        return roi_align(x, jnp.asarray(BOXES), SIZE, scale=SCALE, sampling_ratio=sampling_ratio, chunk=chunk)

    found, pull = jax.vjp(lambda x: run(x, 3), x)  # in chunks, the last of them smaller
    expected = np.einsum("npqk,kc->npqc", matrix, np.asarray(x).reshape(-1, 3))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(run(x, 64), found, atol=1e-5)
    dy = np.random.default_rng(1).standard_normal(found.shape)
    gradient = np.einsum("npqk,npqc->kc", matrix, dy).reshape(x.shape)
    np.testing.assert_allclose(pull(jnp.asarray(dy, jnp.float32))[0], gradient, atol=1e-5)


def test_boxes_get_no_gradient() -> None:
    x = random_map()
    loss = jax.jit(jax.grad(lambda boxes: (roi_align(x, boxes, SIZE, scale=SCALE) ** 2).sum()))
    gradient = loss(jnp.asarray(BOXES))
    assert not gradient.any()


def test_levels_by_the_square_root_of_the_area() -> None:
    sides = [(0, 50), (111, 111), (112.1, 112.1), (223, 223), (56, 448.1), (448.1, 448.1), (2000, 2000)]
    boxes = jnp.asarray([[10, 20, 10 + width, 20 + height] for width, height in sides], jnp.float32)
    np.testing.assert_array_equal(roi_levels(boxes, 4), [0, 0, 1, 1, 1, 3, 3])
    np.testing.assert_array_equal(roi_levels(boxes, 2), [0, 0, 1, 1, 1, 1, 1])


def test_every_box_is_taken_from_the_map_of_its_level() -> None:
    """Two pictures at once, the maps in bfloat16: computed in float32, and rounded at the end."""
    scales = (1 / 4, 1 / 8, 1 / 16)
    maps = [
        jnp.stack([random_map(int(160 * scale), int(240 * scale), seed) for seed in (0, 1)]).astype(jnp.bfloat16)
        for scale in scales
    ]
    boxes = jnp.asarray(random_boxes(2 * 12, seed=0, canvas=160, sides=(20, 300)).clip(0, 160).reshape(2, 12, 4))
    run = functools.partial(multilevel_roi_align, size=SIZE, scales=scales, chunk=5)
    found = jax.jit(jax.vmap(run))(maps, boxes)
    assert found.dtype == jnp.bfloat16

    @jax.jit
    def from_every_map(maps: list[jax.Array], boxes: jax.Array) -> jax.Array:
        pairs = zip(maps, scales, strict=True)
        return jnp.stack([roi_align(x.astype(jnp.float32), boxes, SIZE, scale=scale) for x, scale in pairs])

    for picture in range(2):
        levels = np.asarray(roi_levels(boxes[picture], 3))
        assert set(levels) == {0, 1}
        expected = from_every_map([x[picture] for x in maps], boxes[picture])[levels, np.arange(12)]
        np.testing.assert_allclose(found[picture].astype(jnp.float32), expected, rtol=2**-8, atol=1e-5)


def test_every_map_needs_a_scale() -> None:
    with jaxtyping_disabled(), pytest.raises(ValueError, match="1 maps and 2 scales"):
        multilevel_roi_align([random_map()], jnp.asarray(BOXES), SIZE, scales=[0.25, 0.125])
