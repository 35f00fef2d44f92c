"""A sheet of what one position of a picture attends to, in stages and heads of a model."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from rmt_jax.convert import DensePreprocessing, Preprocessing, Weights
from rmt_jax.data import DataConfig, eval_transform
from rmt_jax.data.resize import rescaled_size, resize_image
from rmt_jax.data.transforms import center_crop_box
from rmt_jax.models import AnyModel, Backbone, RMTConfig, attention_map, decay_map
from rmt_jax.tasks import normalize
from rmt_jax.training.figures import ORANGE

_HEADS = 4  # of a stage, where all stages are shown
_COLUMNS = 7
_SIDE = 1.75  # inches of a panel's longer side
COLOURS = "viridis"  # of weights
_MOVED = "moved: the share of a head's weight that is not where its decay alone would put it"
_NORM = PowerNorm(0.5, 0, 1)  # so that small weights are seen


class View(NamedTuple):
    """A photograph as a model sees it.

    Attributes:
        picture: uint8 [height width 3].
        images: float32 [1 height width 3], normalised.
        scale: (x, y), pixels of the view for each of the photograph.
        offset: (x, y) of the view's corner in pixels of the resized photograph.
    """

    picture: np.ndarray
    images: jax.Array
    scale: tuple[float, float]
    offset: tuple[int, int]

    def place(self, photograph: Image.Image, position: tuple[int, int] | None) -> tuple[int, int]:
        """(x, y) in the view of a pixel (x, y) of the photograph; None is the view's centre.

        Raises:
            ValueError: the pixel is not in the photograph, or not in the part that the model sees.
        """
        height, width = self.picture.shape[:2]
        if position is None:
            return width // 2, height // 2
        given = f"--position {position[0]} {position[1]}"
        if not (0 <= position[0] < photograph.width and 0 <= position[1] < photograph.height):
            raise ValueError(
                f"{given}: the picture has {photograph.width}x{photograph.height} pixels, X from 0 to "
                f"{photograph.width - 1} and Y from 0 to {photograph.height - 1}."
            )
        x, y = (
            math.floor((at + 0.5) * scale - offset)
            for at, scale, offset in zip(position, self.scale, self.offset, strict=True)
        )
        if not (0 <= x < width and 0 <= y < height):
            (left, right), (top, bottom) = (
                (round(offset / scale), round((offset + side) / scale) - 1)
                for scale, offset, side in zip(self.scale, self.offset, (width, height), strict=True)
            )
            raise ValueError(
                f"{given}: the model sees the middle of the picture alone, X from {left} to {right} and Y from {top} "
                f"to {bottom}."
            )
        return x, y


class _Panel(NamedTuple):
    title: str
    stride: int
    weights: np.ndarray | None = None  # without them it shows the picture itself


class Maps(NamedTuple):
    """Attention and prior of the heads of one block, float32 [heads height width] each, summing to 1."""

    stage: int
    block: int  # from 0
    stride: int  # pixels of the view
    attention: np.ndarray
    prior: np.ndarray


def view(weights: Weights, photograph: Image.Image, image_size: int | None = None) -> View:
    """A photograph as models of these weights see it: the evaluation's crop, or all of it for dense predictions.

    Args:
        weights: of any task; those that do not say how their pictures were prepared are taken for ImageNet's.
        photograph: RGB of any size.
        image_size: side of the crop in pixels, in place of the weights' own.

    Raises:
        ValueError: a size for weights that see all of a picture.
    """
    preprocessing: Preprocessing | DensePreprocessing
    if weights.task in ("segmentation", "detection"):
        if image_size is not None:
            raise ValueError(
                f"--image-size {image_size} is of a crop, but models of {weights.task} see all of a picture."
            )
        preprocessing = weights.resizing
        size = rescaled_size(photograph.height, photograph.width, preprocessing.scale)
        picture, offset, resized = resize_image(np.asarray(photograph), size), (0, 0), size[::-1]
    else:
        preprocessing = weights.cropping
        if image_size is not None:
            preprocessing = dataclasses.replace(preprocessing, image_size=image_size)
        config = DataConfig("picture", **dataclasses.asdict(preprocessing))
        picture = eval_transform(photograph, config)
        resized, offset = center_crop_box(*photograph.size, config.image_size, config.crop_ratio)
    scale = resized[0] / photograph.width, resized[1] / photograph.height
    images = normalize(jnp.asarray(picture)[None], preprocessing.mean, preprocessing.std)
    return View(picture, images, scale, offset)


def shade(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(place among the colours, opacity) of each weight: relative to the largest, on a scale that shows small ones."""
    places = np.asarray(_NORM(weights / weights.max()))
    return places, 0.35 + 0.5 * places


def check_choice(config: RMTConfig, blocks: Sequence[tuple[int, int]], heads: Sequence[int] | None) -> None:
    """Raise ValueError for a stage, a block of it, or a head that is not there."""
    for stage, block in blocks:
        if not 1 <= stage <= len(config.depths):
            raise ValueError(f"--stage {stage}: the stages are 1 to {len(config.depths)}.")
        depth, count = config.depths[stage - 1], config.num_heads[stage - 1]
        if not -depth <= block < depth:
            raise ValueError(f"--block {block}: stage {stage} has the blocks 0 to {depth - 1}; -1 is the last.")
        for head in heads or ():
            if not 0 <= head < count:
                raise ValueError(f"--head {head}: stage {stage} has the heads 0 to {count - 1}.")


def find_maps(
    model: AnyModel, images: jax.Array, position: tuple[int, int], blocks: Sequence[tuple[int, int]]
) -> list[Maps]:
    """Maps of blocks, (stage from 1, block of it from 0 or from the end), for the position (x, y) of one picture."""
    backbone = model if isinstance(model, Backbone) else model.backbone
    config, strides = backbone.config, [info.stride for info in backbone.feature_info]
    graph, state = nnx.split(model)
    x, y = position
    cells = {stage: (y // strides[stage - 1], x // strides[stage - 1]) for stage, _ in blocks}

    @jax.jit
    def compute(state: Any, images: jax.Array) -> list[jax.Array]:
        model: Any = nnx.merge(graph, state)
        # One program, in which what comes before several of the blocks is computed once.
        return [
            attention_map(model, images, stage=stage, block=block, position=cells[stage]) for stage, block in blocks
        ]

    found = []
    for (stage, block), weights in zip(blocks, compute(state, images), strict=True):
        attention = np.asarray(weights)[0]
        height, width = attention.shape[1:]
        prior = decay_map(config, stage=stage, size=(height, width), position=cells[stage])
        prior /= prior.sum(axis=(1, 2), keepdims=True)
        found.append(Maps(stage, block % config.depths[stage - 1], strides[stage - 1], attention, prior))
    return found


def draw_attention(
    shown: View, position: tuple[int, int], maps: Sequence[Maps], title: str, heads: Sequence[int] | None = None
) -> Figure:
    """The picture with the position, and over it the mean of the heads, that of their priors, and heads.

    Args:
        shown: the picture.
        position: (x, y) in it.
        maps: of one block a line or more with all heads; of several a line each, with some of the heads.
        title: of the figure.
        heads: those to show, from 0.
    """
    rows: list[list[_Panel]] = []
    for found in maps:
        panels = _panels(found, _chosen(len(found.attention), heads, several=len(maps) > 1))
        rows += [panels[start : start + _COLUMNS] for start in range(0, len(panels), _COLUMNS)]
    height, width = shown.picture.shape[:2]
    unit = _SIDE / max(height, width)
    columns = max(map(len, rows))
    size = max(8.0, columns * (width * unit + 0.15) + 0.9), len(rows) * (height * unit + 0.5) + 0.9
    figure = Figure(figsize=size, dpi=130, layout="constrained")
    figure.suptitle(f"{title}\n{_MOVED}", fontsize=10, x=0.01, ha="left", parse_math=False)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for line, panels in zip(grid, rows, strict=True):
        for axes, panel in zip(line, panels, strict=False):
            _draw_panel(axes, shown.picture, position, panel)
    scale = ScalarMappable(_NORM, COLOURS)
    bar = figure.colorbar(
        scale, ax=grid, shrink=min(1.0, 4 / size[1]), aspect=25, pad=0.01, ticks=[0, 0.01, 0.1, 0.25, 0.5, 1]
    )
    bar.ax.set_yticklabels(["0", "1 %", "10 %", "25 %", "50 %", "max"])
    bar.set_label("weight, of the largest in its panel", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    return figure


def _chosen(count: int, heads: Sequence[int] | None, *, several: bool) -> list[int]:
    """All heads of one block; of several blocks some, from the one that sees least to the one that sees most."""
    if heads is not None:
        return list(heads)
    if not several:
        return list(range(count))
    return sorted({round(head) for head in np.linspace(0, count - 1, min(count, _HEADS))})


def _panels(found: Maps, heads: Sequence[int]) -> list[_Panel]:
    """The picture itself, means over all heads, and heads."""
    height, width = found.attention.shape[1:]
    mean, prior = found.attention.mean(axis=0), found.prior.mean(axis=0)
    panels = [
        _Panel(f"stage {found.stage}, block {found.block}\n{width}x{height} positions", found.stride),
        _Panel(f"mean of {len(found.attention)} heads\nmax {_percent(mean)}", found.stride, mean),
        _Panel(f"decay alone, mean\nmax {_percent(prior)}", found.stride, prior),
    ]
    for head in heads:
        weights = found.attention[head]
        moved = 0.5 * np.abs(weights - found.prior[head]).sum()
        text = f"head {head}: {100 * moved:.0f} % moved\nmax {_percent(weights)}"
        panels.append(_Panel(text, found.stride, weights))
    return panels


def _percent(weights: np.ndarray) -> str:
    """The largest, of a few digits."""
    share = float(weights.max())
    return f"{100 * share:.2g} %" if share < 0.0995 else f"{100 * share:.0f} %"


def _draw_panel(axes: Axes, picture: np.ndarray, position: tuple[int, int], panel: _Panel) -> None:
    """Weights over the grey picture, the more opaque the larger; crosses mark the pixel and the middle of its cell."""
    height, width = picture.shape[:2]
    left, top = (at // panel.stride * panel.stride - 0.5 for at in position)
    smooth = "nearest" if max(height, width) <= 64 else "antialiased"
    axes.set_title(panel.title, fontsize=8, pad=3)
    if panel.weights is None:
        axes.imshow(picture, interpolation=smooth)
        axes.add_patch(Rectangle((left, top), panel.stride, panel.stride, fill=False, edgecolor=ORANGE))
        marked = float(position[0]), float(position[1])
    else:
        axes.imshow(picture.mean(axis=-1), cmap="gray", vmin=0, vmax=255, interpolation=smooth)
        rows, columns = panel.weights.shape
        # Cells are squares of the stride; those of the last row and column may reach beyond the picture.
        extent = (-0.5, columns * panel.stride - 0.5, rows * panel.stride - 0.5, -0.5)
        places, opacity = shade(panel.weights)
        axes.imshow(places, cmap=COLOURS, vmin=0, vmax=1, extent=extent, alpha=opacity, interpolation="nearest")
        axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
        # Of a cell that the picture cuts off, what is seen of it.
        marked = (left + min(left + panel.stride, width - 0.5)) / 2, (top + min(top + panel.stride, height - 0.5)) / 2
    axes.plot(*marked, "X", color=ORANGE, markeredgecolor="white", markersize=6.5)
