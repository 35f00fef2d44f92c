"""Random erasing."""

import math

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from rmt_jax.ops.mixing import box_mask

_ATTEMPTS = 10


def random_erasing(
    key: Array,
    images: Float[Array, "batch height width channels"],
    probability: float,
    area: tuple[float, float] = (0.02, 1 / 3),
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
) -> Float[Array, "batch height width channels"]:
    """Pictures of which some, each with the given probability, have one box replaced by normal noise.

    The box's area is uniform in `area`, a share of the picture, its height / width log-uniform in `aspect`. Of ten such
    draws the first smaller than the picture counts; if none is, the picture stays.
    Source: arXiv 1708.04896, timm's `RandomErasing` in mode "pixel" with one box.

    Args:
        key: of all draws.
        images: normalised, so that noise of mean 0 and standard deviation 1 looks like a picture's.
        probability: of a picture to lose a box.
        area: smallest and largest.
        aspect: smallest and largest.
    """
    batch, height, width, _ = images.shape
    chosen_key, box_key, noise_key = jax.random.split(key, 3)
    chosen = jax.random.uniform(chosen_key, (batch,)) < probability
    boxes = jax.vmap(lambda key: _draw_box(key, height, width, area, aspect))(jax.random.split(box_key, batch))
    inside = jax.vmap(box_mask, in_axes=(0, None, None))(boxes, height, width) & chosen[:, None, None]
    return jnp.where(inside[..., None], jax.random.normal(noise_key, images.shape, images.dtype), images)


def _draw_box(
    key: Array, height: int, width: int, area: tuple[float, float], aspect: tuple[float, float]
) -> Int[Array, "4"]:
    """(top, left, bottom, right), the last two excluded; empty where no draw fits."""
    area_key, aspect_key, place_key = jax.random.split(key, 3)
    areas = height * width * jax.random.uniform(area_key, (_ATTEMPTS,), minval=area[0], maxval=area[1])
    logs = jax.random.uniform(aspect_key, (_ATTEMPTS,), minval=math.log(aspect[0]), maxval=math.log(aspect[1]))
    heights = jnp.round(jnp.sqrt(areas * jnp.exp(logs))).astype(jnp.int32)
    widths = jnp.round(jnp.sqrt(areas / jnp.exp(logs))).astype(jnp.int32)
    fits = (heights < height) & (widths < width)
    first = fits.argmax()
    h, w = jnp.where(fits[first], jnp.stack([heights[first], widths[first]]), 0)
    top, left = jax.random.randint(place_key, (2,), 0, jnp.stack([height - h, width - w]) + 1)
    return jnp.stack([top, left, top + h, left + w])
