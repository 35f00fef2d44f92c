"""The feature pyramid of detectors and of Semantic FPN."""

from collections.abc import Sequence

from flax import nnx
from jax.typing import DTypeLike

from rmt_jax.models.layers import ConvModule
from rmt_jax.models.rmt import Output
from rmt_jax.ops import resize_nearest

FPN_FEATURES = 256


class FPN(nnx.Module):
    """Feature Pyramid Network (arXiv 1612.03144): every map gets what the coarser ones know.

    A 1x1 convolution of each map, from the top the sum with the nearest-neighbour upsampling of the one above, to the
    finer map's size, whatever that is, and a 3x3 convolution. There is a level for each map that is given, so a
    detector that starts at stride 8 gives the maps from there. No norms, no activations. Source: mmseg `FPN`.
    """

    def __init__(self, in_features: Sequence[int], features: int = FPN_FEATURES, *, dtype: DTypeLike, rngs: nnx.Rngs):
        laterals = [ConvModule(width, features, 1, norm=False, dtype=dtype, rngs=rngs) for width in in_features]
        outputs = [ConvModule(features, features, 3, norm=False, dtype=dtype, rngs=rngs) for _ in in_features]
        self.lateral_convs, self.fpn_convs = nnx.List(laterals), nnx.List(outputs)

    def __call__(self, maps: Sequence[Output]) -> tuple[Output, ...]:
        """Maps from fine to coarse, [batch height width in_features], to as many with `features` channels.

        Raises:
            ValueError: another number of maps.
        """
        levels = [lateral(x) for lateral, x in zip(self.lateral_convs, maps, strict=True)]
        for finer in reversed(range(len(levels) - 1)):
            levels[finer] += resize_nearest(levels[finer + 1], levels[finer].shape[1:3])
        return tuple(conv(x) for conv, x in zip(self.fpn_convs, levels, strict=True))
