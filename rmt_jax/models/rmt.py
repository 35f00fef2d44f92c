"""The RMT backbone (arXiv 2309.11523): stem, stages of blocks (`block`) with downsampling between them.

Maps are [batch height width channels]; parameter paths keep the names of the authors' PyTorch code.
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from rmt_jax.models.block import Block, Map
from rmt_jax.models.block_loop import PerDevice, run_blocks
from rmt_jax.models.layers import BatchNorm, LayerNorm, conv3x3
from rmt_jax.models.variants import RMTConfig
from rmt_jax.ops import Valid, clear, gelu, strided, swap_boxes

Images = Array | np.ndarray  # checked by check_images, with errors for users
Output = Float[Array, "batch _ _ _"]  # a map of another size

MIN_SIZE = 32  # the stride of the last stage
STEM_STRIDES = (2, 1, 2, 1)
MIX_SCALE = 8  # stem positions along each side of a token of the last stage
EXTRA_NORM_EPSILON = 1e-5  # upstream's, unlike the 1e-6 of all other LayerNorms


class FeatureInfo(NamedTuple):
    """What one of the four maps is: its channels, and its stride in pixels."""

    channels: int
    stride: int


class Stem(nnx.Module):
    """Four 3x3 convolutions with BatchNorm, GELU between them, to a quarter of the size (upstream's PatchEmbed)."""

    def __init__(self, features: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        half = features // 2
        layers: list[nnx.Module | None] = []  # None stands for GELU, so that the positions are upstream's
        widths = (3, half, half, features, features)
        for (in_features, out_features), strides in zip(itertools.pairwise(widths), STEM_STRIDES, strict=True):
            layers.append(conv3x3(in_features, out_features, strides=strides, dtype=dtype, rngs=rngs))
            layers.append(BatchNorm(out_features, dtype=dtype, rngs=rngs))
            layers.append(None)
        self.proj = nnx.List(layers[:-1])

    def __call__(self, images: Float[Array, "batch height width 3"], valid: Valid | None = None) -> Output:
        """Images, which are of `valid` sizes, to [batch height/4 width/4 channels], sizes rounded up."""
        x = images
        for index, layer in enumerate(self.proj):
            if layer is None:
                x = gelu(x)
            elif isinstance(layer, BatchNorm):
                x = layer(x, valid)
            else:
                x, valid = layer(clear(x, valid)), strided(valid, STEM_STRIDES[index // 3])
        return x


class Downsample(nnx.Module):
    """3x3 convolution of stride 2 and BatchNorm, between stages (upstream's PatchMerging)."""

    def __init__(self, in_features: int, out_features: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.reduction = conv3x3(in_features, out_features, strides=2, dtype=dtype, rngs=rngs)
        self.norm = BatchNorm(out_features, dtype=dtype, rngs=rngs)

    def __call__(self, x: Map, valid: Valid | None = None) -> Output:
        """[batch height width channels], of which pictures fill `valid` sizes -> half the size, rounded up."""
        return self.norm(self.reduction(clear(x, valid)), strided(valid, 2))


class Stage(nnx.Module):
    """Blocks of one resolution. `downsample` leads to the next stage and is not part of the call."""

    def __init__(self, config: RMTConfig, stage: int, drop_path: list[float], *, dtype: DTypeLike, rngs: nnx.Rngs):
        dims = config.embed_dims
        self.blocks = nnx.List([Block(config, stage, rate, dtype=dtype, rngs=rngs) for rate in drop_path])
        last = stage == len(dims) - 1
        self.downsample = None if last else Downsample(dims[stage], dims[stage + 1], dtype=dtype, rngs=rngs)
        self.remat, self.scan = config.remat, config.scan
        self.per_device: PerDevice | None = None  # training sets it where pictures are split over devices

    def __call__(self, x: Map, keys: Array | None = None, valid: Valid | None = None) -> Map:
        """[batch height width channels] -> the same shape; one key a block, or None for no drop path."""
        return run_blocks(
            self.blocks, x, keys, remat=self.remat, scan=self.scan, per_device=self.per_device, valid=valid
        )


class Backbone(nnx.Module):
    """RMT without a head: four maps at strides 4, 8, 16 and 32, for detectors and segmentors."""

    def __init__(self, config: RMTConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.patch_embed = Stem(config.embed_dims[0], dtype=dtype, rngs=rngs)
        rates = iter(np.linspace(0, config.drop_path, sum(config.depths)).tolist())
        self.layers = nnx.List(
            [
                Stage(config, stage, [next(rates) for _ in range(depth)], dtype=dtype, rngs=rngs)
                for stage, depth in enumerate(config.depths)
            ]
        )
        norms = [LayerNorm(dim, epsilon=EXTRA_NORM_EPSILON, dtype=dtype, rngs=rngs) for dim in config.embed_dims]
        self.extra_norms = nnx.List(norms) if config.extra_norms else None
        self.config, self.dtype = config, dtype
        self.deterministic = False  # model.eval() sets it: no drop path

    def set_view(self, *, deterministic: bool | None = None) -> None:
        """What `nnx.view` may change."""
        if deterministic is not None:
            self.deterministic = deterministic

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        """Channels and stride of each map."""
        return tuple(FeatureInfo(dim, 4 * 2**stage) for stage, dim in enumerate(self.config.embed_dims))

    def __call__(
        self,
        images: Images,
        *,
        rngs: nnx.Rngs | None = None,
        mix_boxes: Int[Array, "groups 4"] | None = None,
        valid: Valid | None = None,
    ) -> tuple[Output, ...]:
        """The four maps, each a stage's output before the downsampling that follows it.

        With `extra_norms` the maps are normalised; what goes on to the next stage is not.

        Args:
            images: [batch height width 3] normalised floats, 32x32 pixels or more, square or not.
            rngs: draws the drop path in training mode.
            mix_boxes: boxes to exchange after the stem, see `Classifier`.
            valid: (height, width) in pixels, at least 1, of pictures in the top left corner of a larger canvas. Maps
                are then those of each picture alone, and what they have beside it means nothing. Statistics of
                BatchNorm are those of the pictures. None: the pictures fill the canvas.

        Raises:
            ValueError: images of another shape or type, or no rngs where drop path needs them; sizes of another number
                of pictures.
        """
        check_images(images)
        check_valid(images, valid)
        if mix_boxes is not None and (images.shape[1] % MIN_SIZE or images.shape[2] % MIN_SIZE):
            raise ValueError(
                f"mix_boxes exchange {MIX_SCALE}x{MIX_SCALE} stem positions for each token, which needs heights and "
                f"widths that are multiples of {MIN_SIZE}; got images of {images.shape[1]}x{images.shape[2]}."
            )
        keys = self._drop_path_keys(rngs)
        with jax.named_scope("stem"):
            x = self.patch_embed(jnp.asarray(images, self.dtype), valid)
        valid = strided(valid, 4)
        if mix_boxes is not None:
            x = swap_boxes(x, mix_boxes * MIX_SCALE)
        maps = []
        for index, (stage, stage_keys) in enumerate(zip(self.layers, keys, strict=True)):
            with jax.named_scope(f"stage{index + 1}"):
                x = stage(x, stage_keys, valid)
            maps.append(x)
            if stage.downsample is not None:
                with jax.named_scope("downsample"):
                    x, valid = stage.downsample(x, valid), strided(valid, 2)
        if self.extra_norms is None:
            return tuple(maps)
        return tuple(norm(x) for norm, x in zip(self.extra_norms, maps, strict=True))

    def _drop_path_keys(self, rngs: nnx.Rngs | None) -> list[Array] | list[None]:
        """Keys of the blocks of each stage: different for every block."""
        if self.deterministic or self.config.drop_path == 0:
            return [None] * len(self.layers)
        if rngs is None:
            raise ValueError(
                f"In training mode drop path ({self.config.drop_path}) needs randomness: pass rngs=nnx.Rngs(seed), "
                f"or switch to model.eval(), or create the model with drop_path=0."
            )
        keys = jax.random.split(rngs.drop_path(), sum(self.config.depths))
        return jnp.split(keys, np.cumsum(self.config.depths)[:-1])


def check_images(images: Images) -> None:
    """Raise ValueError unless images are [batch height width 3] floats of at least 32x32 pixels."""
    expected = f"[batch height width 3] floats of at least {MIN_SIZE}x{MIN_SIZE} pixels"
    shape, dtype = np.shape(images), jnp.result_type(images)
    if len(shape) != 4:
        raise ValueError(f"Expected images {expected}; got shape {shape}. A single image needs images[None].")
    if shape[-1] != 3:
        hint = " Channels come last here: images.transpose(0, 2, 3, 1)." if shape[1] == 3 else ""
        raise ValueError(f"Expected images {expected}; got shape {shape} with {shape[-1]} channels.{hint}")
    if min(shape[1:3]) < MIN_SIZE:
        raise ValueError(f"Expected images {expected}; got shape {shape}, which is {shape[1]}x{shape[2]} pixels.")
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"Expected images {expected}; got {dtype} of shape {shape}. Normalise them: (images / 255 - mean) / std."
        )


def check_valid(images: Images, valid: Valid | None) -> None:
    """Raise ValueError unless sizes are (height, width) of every image, in whole numbers."""
    if valid is None:
        return
    shape, dtype = np.shape(valid), jnp.result_type(valid)
    if shape != (len(images), 2) or not jnp.issubdtype(dtype, jnp.integer):
        raise ValueError(
            f"valid holds (height, width) of each of {len(images)} images, whole numbers of shape ({len(images)}, 2); "
            f"got {dtype} of shape {shape}."
        )
