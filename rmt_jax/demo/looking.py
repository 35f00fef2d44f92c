"""Attention over one picture after another, quickly enough to click through it."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import matplotlib as mpl
import numpy as np
from flax import nnx
from PIL import Image, ImageDraw

from rmt_jax.convert import Weights
from rmt_jax.models import Backbone, attention_map, decay_map
from rmt_jax.training.attention_sheet import COLOURS, shade, view
from rmt_jax.training.figures import ORANGE

_LEAST = 448  # pixels of the longer side of what is shown
_CELLS = 8  # of a map along its side, at least, to begin with
_ARM = 8  # of the cross, in pixels


class Look(NamedTuple):
    """What one position attends to, as a picture, uint8 [height width 3], and in words."""

    picture: np.ndarray
    words: str


class Looking:
    """The attention of a model, compiled once for each block and shape of pictures.

    Args:
        weights: of any model.

    Attributes:
        depths: blocks of each stage.
        heads: of each stage's blocks.
        first_stage: the one to begin with, whose map is neither tiny nor as fine as the picture.
    """

    def __init__(self, weights: Weights) -> None:
        model = weights.to_model()
        backbone = model if isinstance(model, Backbone) else model.backbone
        graph, state = nnx.split(model)
        self.depths, self.heads = weights.config.depths, weights.config.num_heads
        self._weights, self._state = weights, nnx.to_pure_dict(state)
        self._strides = [info.stride for info in backbone.feature_info]
        dense = weights.task in ("segmentation", "detection")
        side = weights.resizing.scale[1] if dense else weights.cropping.image_size
        self.first_stage = max(
            [1, *(stage for stage, stride in enumerate(self._strides, 1) if side >= _CELLS * stride)]
        )

        @functools.cache
        def program(stage: int, block: int) -> Callable[..., jax.Array]:
            def attend(state: Any, images: jax.Array, row: jax.Array, column: jax.Array) -> jax.Array:
                model: Any = nnx.merge(graph, state)
                return attention_map(model, images, stage=stage, block=block, position=(row, column))[0]

            return jax.jit(attend)

        self._program = program

    def look(
        self, photograph: Image.Image, *, stage: int, block: int, head: int | None, position: tuple[float, float]
    ) -> Look:
        """What a position attends to.

        Args:
            photograph: 8-bit RGB of any size.
            stage: from 1.
            block: of the stage, from 0.
            head: of the block, from 0; None for the mean of all.
            position: (x, y) in what the model sees of the photograph, as shares of its width and height.
        """
        seen = view(self._weights, photograph)
        stride, (height, width) = self._strides[stage - 1], seen.picture.shape[:2]
        x, y = (min(int(share * side), side - 1) for share, side in zip(position, (width, height), strict=True))
        row, column = y // stride, x // stride
        attention = np.asarray(self._program(stage, block)(self._state, seen.images, row, column))
        size = attention.shape[1], attention.shape[2]
        prior = decay_map(self._weights.config, stage=stage, size=size, position=(row, column))
        prior /= prior.sum(axis=(1, 2), keepdims=True)
        chosen = slice(None) if head is None else slice(head, head + 1)
        weights, alone = attention[chosen].mean(axis=0), prior[chosen].mean(axis=0)
        moved = 0.5 * np.abs(weights - alone).sum()
        which = f"the mean of {len(attention)} heads" if head is None else f"head {head}"
        words = (
            f"Stage {stage}, block {block}, {which}: row {row}, column {column} of {size[0]}x{size[1]} positions. The "
            f"largest weight is {100 * weights.max():.2g} %; {100 * moved:.0f} % of the weight lies elsewhere than "
            "the decay alone would put it."
        )
        return Look(_mark(_blend(seen.picture, weights, stride), (x, y)), words)


def _blend(picture: np.ndarray, weights: np.ndarray, stride: int) -> np.ndarray:
    """A grey picture under the colours of weights, uint8 [height width 3]; the stride is in pixels."""
    height, width = picture.shape[:2]
    places, opacity = (np.kron(part, np.ones((stride, stride)))[:height, :width, None] for part in shade(weights))
    colours = 255 * mpl.colormaps[COLOURS](places[..., 0])[..., :3]
    return np.rint((1 - opacity) * picture.mean(axis=-1, keepdims=True) + opacity * colours).astype(np.uint8)


def _mark(picture: np.ndarray, position: tuple[int, int]) -> np.ndarray:
    """Enlarged to be clicked on, with a cross at a position."""
    times = max(1, -(-_LEAST // max(picture.shape[:2])))
    image = Image.fromarray(picture)
    image = image.resize((times * image.width, times * image.height), Image.Resampling.NEAREST)
    x, y = (times * at + times // 2 for at in position)
    pen = ImageDraw.Draw(image)
    for colour, thickness in (("white", 6), (ORANGE, 3)):
        pen.line((x - _ARM, y - _ARM, x + _ARM, y + _ARM), fill=colour, width=thickness)
        pen.line((x - _ARM, y + _ARM, x + _ARM, y - _ARM), fill=colour, width=thickness)
    return np.asarray(image)
