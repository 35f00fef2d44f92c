"""Masks of objects as the mask head learns them: cut out by a box, at a fixed size.

Masks of a picture come as bits, eight neighbours in a byte as `numpy.packbits(mask, axis=-1)` has them: those of 100
objects at 800x1344 are 13 MB, and 108 MB as bytes.
"""

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int, UInt8

from rmt_jax.ops.boxes import clip_boxes
from rmt_jax.ops.roi_align import box_weights, weighted


def mask_targets(
    masks: UInt8[Array, "m height bytes"],
    index: Int[Array, " n"],
    rois: Float[Array, "n 4"],
    size: int = 28,
    *,
    chunk: int = 16,
) -> Bool[Array, "n size size"]:
    """The mask of an object in each box, where it covers at least half of a bin. Source: mmdet `mask_target`.

    Args:
        masks: of a picture's objects, as bits; the width is a multiple of 8.
        index: the object of each box.
        rois: boxes in pixels; what is outside the masks is cut off.
        size: bins along each side.
        chunk: boxes at once, for each of which a mask is unpacked.
    """
    return mask_coverage(masks, index, rois, size, chunk=chunk) >= 0.5


def mask_coverage(
    masks: UInt8[Array, "m height bytes"],
    index: Int[Array, " n"],
    rois: Float[Array, "n 4"],
    size: int,
    *,
    chunk: int = 16,
) -> Float[Array, "n size size"]:
    """How much of each bin of a box an object's mask covers: RoIAlign of the mask, in [0, 1]. See `mask_targets`."""
    shape = masks.shape[1], 8 * masks.shape[2]

    def one(object_and_box: tuple[Array, Array]) -> Array:
        which, box = object_and_box
        return weighted(unpack_bits(masks[which]).astype(jnp.float32), *box_weights(box - 0.5, shape, size))

    return lax.map(one, (index, clip_boxes(lax.stop_gradient(rois), shape)), batch_size=chunk)


def unpack_bits(packed: UInt8[Array, "*axes bytes"]) -> Bool[Array, "*axes bits"]:
    """The inverse of `numpy.packbits(..., axis=-1)`."""
    places = jnp.arange(7, -1, -1, dtype=jnp.uint8)
    bits = lax.shift_right_logical(packed[..., None], jnp.broadcast_to(places, (*packed.shape, 8))) & 1
    return bits.reshape(*packed.shape[:-1], -1).astype(bool)
