"""Mixing of samples on feature maps."""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int


def box_mask(box: Int[Array, "4"], height: int, width: int) -> Bool[Array, "height width"]:
    """True inside a box (top, left, bottom, right), the last two excluded. The box may be a traced array."""
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
    return (rows >= box[0]) & (rows < box[2]) & (columns >= box[1]) & (columns < box[3])


def swap_box(
    x: Float[Array, "batch height width channels"], box: Int[Array, "4"]
) -> Float[Array, "batch height width channels"]:
    """Exchange a box of each map with the same box of the batch in reverse order. Applied twice, it undoes itself.

    The mix-token of token labelling: on the stem's map with the box in stem positions, and on the auxiliary output
    with the box in tokens to bring every token's prediction back to its own picture.

    Args:
        x: maps.
        box: (top, left, bottom, right) in positions of x, the last two excluded.
    """
    return jnp.where(box_mask(box, x.shape[1], x.shape[2])[None, :, :, None], x[::-1], x)
