"""Token labelling: targets for a crop and for its tokens from the label map of the whole picture.

"All Tokens Matter: Token Labeling for Training Better Vision Transformers", arXiv 2104.10858; its functions
`get_featuremaps`, `get_label` and `create_token_label_target`.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from rmt_jax.ops.roi_align import bin_weights, weighted


def token_targets(
    scores: Float[Array, "batch top rows columns"],
    ids: Int[Array, "batch top rows columns"],
    boxes: Float[Array, "batch 4"],
    num_classes: int,
    *,
    size: int = 7,
    smoothing: float = 0.1,
    upstream_crops: bool = False,
) -> tuple[Float[Array, "batch classes"], Float[Array, "batch size size classes"]]:
    """Targets of a crop as a whole and of each of its tokens: softmax over the map's scores in the box, smoothed.

    Everything is float32. A class that a cell does not list has the score 0 there; a class that it lists twice has the
    sum. Ids of `num_classes` and more are no class.

    Args:
        scores: of the best classes in each cell of the picture's grid, before a softmax.
        ids: of those classes.
        boxes: (top, left, height, width) of the crop, as fractions of the picture.
        num_classes: of the model.
        size: tokens along each side of the crop.
        smoothing: a target is p * (1 - smoothing + smoothing / num_classes) + smoothing / num_classes, as upstream has
            it: a little more than 1 in sum.
        upstream_crops: cut the transposed box, as upstream's code does by mistaking (top, left) for (x, y).
    """
    scores, boxes = scores.astype(jnp.float32), boxes.astype(jnp.float32)
    starts, stops = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    if upstream_crops:
        starts, stops = starts[:, ::-1], stops[:, ::-1]

    def one(scores: Array, ids: Array, start: Array, stop: Array) -> tuple[Array, Array]:
        dense = dense_map(scores, ids, num_classes)
        return roi_align(dense, start, stop, 1)[0, 0], roi_align(dense, start, stop, size)

    off = smoothing / num_classes
    crop, tokens = jax.vmap(one)(scores, ids, starts, stops)
    return (
        jax.nn.softmax(crop, axis=-1) * (1 - smoothing + off) + off,
        jax.nn.softmax(tokens, axis=-1) * (1 - smoothing + off) + off,
    )


def dense_map(
    scores: Float[Array, "top rows columns"], ids: Int[Array, "top rows columns"], num_classes: int
) -> Float[Array, "rows columns classes"]:
    """The score of every class in every cell, 0 for those that are not listed."""
    # Comparisons and a sum, which XLA fuses, in the place of a scatter, which a TPU does one entry at a time.
    listed = ids[..., None] == jnp.arange(num_classes, dtype=ids.dtype)
    return jnp.where(listed, scores[..., None], jnp.zeros((), scores.dtype)).sum(axis=0)


def roi_align(
    x: Float[Array, "rows columns channels"], start: Float[Array, "2"], stop: Float[Array, "2"], size: int
) -> Float[Array, "size size channels"]:
    """RoIAlign of one box, its (row, column) corners given as fractions of the map.

    Source: torchvision `roi_align` with its defaults: the adaptive number of samples and `aligned=False`; corners at
    fraction * side - 0.5, as upstream calls it.
    """
    sides = jnp.asarray(x.shape[:2], jnp.float32)
    first = start * sides - 0.5
    lengths = jnp.maximum(stop * sides - 0.5 - first, 1.0)
    rows, columns = (bin_weights(first[axis], lengths[axis], x.shape[axis], size) for axis in (0, 1))
    return weighted(x, rows, columns)
