"""Mixing of samples within groups: the first of a group with the last, the second with the last but one, and so on.

A batch is cut into groups of consecutive samples, each with its own draw. So one large batch over many devices mixes
as many small ones would, and in the same way however it is spread.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int, Shaped

Boxes = Int[Array, "groups 4"]


def box_mask(box: Int[Array, "4"], height: int, width: int) -> Bool[Array, "height width"]:
    """True inside a box (top, left, bottom, right), the last two excluded. The box may be a traced array."""
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
    return (rows >= box[0]) & (rows < box[2]) & (columns >= box[1]) & (columns < box[3])


def reverse_groups(x: Shaped[Array, "batch ..."], groups: int) -> Shaped[Array, "batch ..."]:
    """Every group of samples in reverse order.

    Raises:
        ValueError: the groups do not divide the batch.
    """
    if x.shape[0] % groups:
        raise ValueError(f"{x.shape[0]} samples cannot be cut into {groups} equal groups.")
    return x.reshape(groups, -1, *x.shape[1:])[:, ::-1].reshape(x.shape)


def swap_boxes(
    x: Float[Array, "batch height width channels"], boxes: Boxes
) -> Float[Array, "batch height width channels"]:
    """Exchange a box of each map with the same box of its partner in the group. Applied twice, it undoes itself.

    CutMix on pictures, and mix-token on feature maps: on the stem's map with the boxes in stem positions, and on the
    auxiliary output with the boxes in tokens, to bring every token's prediction back to its own picture.

    Args:
        x: maps.
        boxes: (top, left, bottom, right) in positions of x, the last two excluded; one for each group.
    """
    groups, (_, height, width, _) = len(boxes), x.shape
    masks = jax.vmap(box_mask, in_axes=(0, None, None))(boxes, height, width)
    masks = jnp.repeat(masks, x.shape[0] // groups, axis=0)
    return jnp.where(masks[..., None], reverse_groups(x, groups), x)


def blend(x: Float[Array, "batch ..."], weights: Float[Array, " groups"]) -> Float[Array, "batch ..."]:
    """weight * x + (1 - weight) * its partner in the group: mixup, and the targets of every mixing."""
    own = jnp.repeat(weights, x.shape[0] // len(weights)).reshape(-1, *[1] * (x.ndim - 1))
    return own * x + (1 - own) * reverse_groups(x, len(weights))


def draw_box(key: Array, share: Float[Array, ""], height: int, width: int) -> Int[Array, "4"]:
    """A random box (top, left, bottom, right) of a share of the area, clipped at the borders.

    Its centre is uniform over all positions, its sides are the map's times sqrt(share), rounded down; half a side,
    rounded down, lies on either side of the centre. Source: CutMix (arXiv 1905.04899), timm's `rand_bbox`.
    """
    y_key, x_key = jax.random.split(key)
    rows = _interval(jax.random.randint(y_key, (), 0, height), share, height)
    columns = _interval(jax.random.randint(x_key, (), 0, width), share, width)
    return jnp.stack([rows[0], columns[0], rows[1], columns[1]])


def _interval(center: Int[Array, ""], share: Float[Array, ""], length: int) -> Int[Array, "2"]:
    half = jnp.floor(length * jnp.sqrt(share)).astype(jnp.int32) // 2
    return jnp.clip(jnp.stack([center - half, center + half]), 0, length)


def box_share(boxes: Boxes, height: int, width: int) -> Float[Array, " groups"]:
    """Area of each box as a share of the map."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / (height * width)
