"""Canvases: maps of one static size for pictures of many sizes, whose padding must change no number.

`valid` holds the (height, width) of each picture on its map, from the top left corner, in positions of that map; None
says that pictures fill their maps. It is traced: one program serves all sizes.
"""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

Map = Float[Array, "batch height width channels"]
Valid = Int[Array, "batch 2"]


def inside(x: Map, valid: Valid) -> Bool[Array, "batch height width 1"]:
    """Which positions of a map are of its picture."""
    rows, columns = (jnp.arange(length) < valid[:, axis, None] for axis, length in enumerate(x.shape[1:3]))
    return (rows[:, :, None] & columns[:, None, :])[..., None]


def clear(x: Map, valid: Valid | None) -> Map:
    """x with zeros around the pictures, which is what a convolution's own padding puts there; of None x itself."""
    return x if valid is None else jnp.where(inside(x, valid), x, 0)


def strided(valid: Valid | None, stride: int) -> Valid | None:
    """Sizes on the map that strided convolutions or slices make: divided and rounded up."""
    return None if valid is None else -(-valid // stride)
