"""Mixup, CutMix and mix-token on the device, with one draw for each group of the global batch."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from rmt_jax.ops import blend, box_share, draw_box, swap_boxes


@dataclasses.dataclass(frozen=True)
class MixConfig:
    """Mixing of pictures with their labels; the defaults mix nothing.

    Attributes:
        mixup: alpha of mixup's Beta(alpha, alpha), 0 is no mixup; 0.8 on ImageNet.
        cutmix: alpha of CutMix's Beta(alpha, alpha), 0 is no CutMix; 1.0 on ImageNet.
        cutmix_share: how often it is CutMix where both are on.
        probability: of a group to be mixed at all.
        mix_token: exchange boxes of tokens after the stem instead, with Beta(1, 1); for token labelling.
        group: consecutive samples of the global batch that share a draw and are partners of each other: the first of
            the last, and so on. Upstream's is a process's batch, 128.

    Raises:
        ValueError: a value is out of its range, or mix_token is on together with mixup or CutMix.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    cutmix_share: float = 0.5
    probability: float = 1.0
    mix_token: bool = False
    group: int = 128

    def __post_init__(self) -> None:
        for name in ("mixup", "cutmix"):
            if getattr(self, name) < 0:
                raise ValueError(f"mix.{name}={getattr(self, name)}: expected 0 (off) or a positive alpha.")
        for name in ("cutmix_share", "probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"mix.{name}={getattr(self, name)}: expected a probability between 0 and 1.")
        if self.group < 1:
            raise ValueError(f"mix.group={self.group}: expected a number of samples, 1 or more.")
        if self.mix_token and self.mixes_pictures:
            raise ValueError("mix.mix_token excludes mix.mixup and mix.cutmix: set both to 0.")

    @property
    def mixes_pictures(self) -> bool:
        """Whether mixup or CutMix is on."""
        return bool(self.probability and (self.mixup or self.cutmix))


def mix_pictures(
    key: Array,
    images: Float[Array, "batch height width channels"],
    targets: Float[Array, "batch classes"],
    config: MixConfig,
) -> tuple[Float[Array, "batch height width channels"], Float[Array, "batch classes"]]:
    """Pictures and targets after mixup or CutMix, one of them for each group.

    CutMix's targets are weighted with the area of the box as it was cut, clipped at the border.
    Source: timm's `Mixup` in mode "batch", a group being its batch.
    """
    _, height, width, _ = images.shape
    keys = jax.random.split(key, len(images) // config.group)
    weights, boxes = jax.vmap(lambda key: _draw(key, height, width, config))(keys)
    images = swap_boxes(blend(images, weights), boxes)
    return images, blend(targets, weights * (1 - box_share(boxes, height, width)))


def _draw(key: Array, height: int, width: int, config: MixConfig) -> tuple[Float[Array, ""], Int[Array, "4"]]:
    """(weight of the own picture, box of the partner's) of a group: one of the two is neutral, 1 or empty."""
    mixed_key, kind_key, mixup_key, cutmix_key, box_key = jax.random.split(key, 5)
    mixed = jax.random.uniform(mixed_key) < config.probability
    share = config.cutmix_share if config.mixup and config.cutmix else float(config.cutmix > 0)
    cutmix = jax.random.uniform(kind_key) < share
    weight, box = jnp.ones(()), jnp.zeros(4, jnp.int32)
    if config.mixup:
        drawn = jax.random.beta(mixup_key, config.mixup, config.mixup)
        weight = jnp.where(mixed & ~cutmix, drawn, weight)
    if config.cutmix:
        drawn = draw_box(box_key, 1 - jax.random.beta(cutmix_key, config.cutmix, config.cutmix), height, width)
        box = jnp.where(mixed & cutmix, drawn, box)
    return weight, box


def draw_token_boxes(key: Array, groups: int, height: int, width: int) -> Int[Array, "groups 4"]:
    """Mix-token's boxes (top, left, bottom, right) on a grid of tokens, the last two excluded.

    Their shares, before they are clipped, are from Beta(1, 1).
    """

    def draw(key: Array) -> Int[Array, "4"]:
        share_key, box_key = jax.random.split(key)
        return draw_box(box_key, jax.random.uniform(share_key), height, width)

    return jax.vmap(draw)(jax.random.split(key, groups))
