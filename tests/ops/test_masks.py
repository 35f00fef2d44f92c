"""Masks as targets, by hand. Upstream's are in tests/reference."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from rmt_jax.ops import mask_coverage, mask_targets, unpack_bits

MASKS = np.zeros((2, 16, 24), bool)
MASKS[0, 4:12, 4:20] = True
MASKS[1, :, :8] = True
PACKED = jnp.asarray(np.packbits(MASKS, axis=-1))


def test_bits_are_unpacked_as_they_were_packed() -> None:
    masks = np.random.default_rng(0).random((3, 5, 32)) < 0.5
    np.testing.assert_array_equal(unpack_bits(jnp.asarray(np.packbits(masks, axis=-1))), masks)


def test_coverage_of_bins() -> None:
    """Bins of 6x4 pixels of both masks, and of a pixel; a box that leaves the picture ends at its border."""
    boxes = jnp.asarray([[0.0, 0, 24, 16], [0, 0, 24, 16], [4, 4, 8, 8], [0, 0, 48, 16]])
    index = jnp.asarray([1, 0, 0, 1])
    run = jax.jit(functools.partial(mask_coverage, size=4, chunk=3))
    found = run(PACKED, index, boxes)
    np.testing.assert_allclose(found[0], np.broadcast_to([1, 1 / 3, 0, 0], (4, 4)), atol=1e-6)
    np.testing.assert_allclose(found[1], np.outer([0, 1, 1, 0], [1 / 3, 1, 1, 1 / 3]), atol=1e-6)
    np.testing.assert_array_equal(found[2], np.ones((4, 4)))
    np.testing.assert_array_equal(found[3], found[0])


def test_half_covered_is_covered() -> None:
    boxes = jnp.asarray([[6.0, 0, 10, 16], [6, 0, 11, 16]])
    found = jax.jit(mask_targets, static_argnums=3)(PACKED, jnp.asarray([1, 1]), boxes, 1)
    np.testing.assert_array_equal(found[:, 0, 0], [True, False])
