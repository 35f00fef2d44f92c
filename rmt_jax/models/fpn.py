"""The feature pyramid of detectors and of Semantic FPN."""

from collections.abc import Sequence
from typing import Literal

from flax import nnx
from jax.typing import DTypeLike

from rmt_jax.models.initializers import KAIMING
from rmt_jax.models.layers import ConvModule
from rmt_jax.models.rmt import Output
from rmt_jax.ops import Valid, resize_nearest, strided

FPN_FEATURES = 256

# Levels above those of the maps: none; one, every other position of the top level (R-CNN); or two, by convolutions of
# stride 2 on the coarsest map and on each other (RetinaNet).
ExtraLevels = Literal["none", "subsampled", "convolved"]


class FPN(nnx.Module):
    """Feature Pyramid Network (arXiv 1612.03144): every map gets what the coarser ones know.

    A 1x1 convolution of each map, from the top the sum with the nearest-neighbour upsampling of the one above, to the
    finer map's size, whatever that is, and a 3x3 convolution. There is a level for each map that is given, so a
    detector that starts at stride 8 gives the maps from there. No norms, no activations. Source: mmseg and mmdet `FPN`.
    """

    def __init__(
        self,
        in_features: Sequence[int],
        features: int = FPN_FEATURES,
        *,
        extra_levels: ExtraLevels = "none",
        kernel_init: nnx.Initializer = KAIMING,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        def conv(width: int, kernel_size: int, strides: int = 1) -> ConvModule:
            return ConvModule(
                width,
                features,
                kernel_size,
                norm=False,
                strides=strides,
                kernel_init=kernel_init,
                dtype=dtype,
                rngs=rngs,
            )

        laterals = [conv(width, 1) for width in in_features]
        outputs = [conv(features, 3) for _ in in_features]
        if extra_levels == "convolved":
            outputs += [conv(width, 3, strides=2) for width in (in_features[-1], features)]
        self.lateral_convs, self.fpn_convs = nnx.List(laterals), nnx.List(outputs)
        self.extra_levels = extra_levels

    def __call__(self, maps: Sequence[Output], valid: Valid | None = None) -> tuple[Output, ...]:
        """Maps from fine to coarse, [batch height width in_features], to as many with `features` channels, and more.

        Args:
            maps: each half the size of the one before where `valid` is given.
            valid: sizes of the pictures on the first map where they do not fill it.

        Raises:
            ValueError: another number of maps.
        """
        sizes = [strided(valid, 2**level) for level in range(len(maps))]
        levels = [lateral(x) for lateral, x in zip(self.lateral_convs, maps, strict=True)]
        for finer in reversed(range(len(levels) - 1)):
            levels[finer] += resize_nearest(levels[finer + 1], levels[finer].shape[1:3])
        outputs = [conv(x, size) for conv, x, size in zip(self.fpn_convs, levels, sizes, strict=False)]
        if self.extra_levels == "subsampled":
            outputs.append(outputs[-1][:, ::2, ::2])
        elif self.extra_levels == "convolved":
            on_map, on_level = list(self.fpn_convs)[len(maps) :]
            outputs.append(on_map(maps[-1], sizes[-1]))
            outputs.append(on_level(outputs[-1], strided(sizes[-1], 2)))
        return tuple(outputs)
