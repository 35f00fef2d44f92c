"""A sheet of the decay of every head of a model: what retention looks at before it has learned anything."""

import math
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from rmt_jax.models import RMTConfig, decay_map
from rmt_jax.ops import log_decay_rates
from rmt_jax.training.figures import GREY, ORANGE

_COLUMNS = 8  # of maps
_MAP = 1.15  # inches, with its title
_COLOURS = "cividis"

_DECOMPOSED = """\
Decomposed retention attends along
each row with the first factor, then
along each column with the second:
their product is never written down,
and each step has a softmax of its own.

Full retention attends to all positions
at once, with the product.

The logarithms are added to the logits.
Rates are constants, none is learned."""


def draw_decay(name: str, config: RMTConfig, size: tuple[int, int]) -> Figure:
    """How the decay is made of its two axes, and for each stage the map of every head and its fall with the distance.

    Args:
        name: of the model, for the title.
        config: its architecture.
        size: (height, width) of the pictures in pixels.
    """
    lines = [math.ceil(heads / _COLUMNS) for heads in config.num_heads]
    heights = [3.1, *(0.55 + max(_MAP * count, 1.5) for count in lines)]
    figure = Figure(figsize=(13.5, sum(heights) + 0.4), dpi=120, layout="constrained")
    figure.suptitle(
        f"{name}, pictures of {size[1]}x{size[0]}: the decay between positions of each head",
        fontsize=13,
        x=0.01,
        ha="left",
    )
    parts: Any = figure.subfigures(1 + len(lines), 1, height_ratios=heights)
    how, *stages = parts
    _draw_factors(how, config, _map_size(size, 1))
    for stage, part in enumerate(stages, start=1):
        _draw_stage(part, config, stage, _map_size(size, stage), lines[stage - 1])
    return figure


def _stride(stage: int) -> int:
    return 2 * 2**stage


def _map_size(size: tuple[int, int], stage: int) -> tuple[int, int]:
    height, width = size
    return -(-height // _stride(stage)), -(-width // _stride(stage))


def _draw_factors(part: SubFigure, config: RMTConfig, size: tuple[int, int]) -> None:
    """Of a head in the middle of the first stage: both axes' factors and their product from the middle position."""
    (height, width), head = size, config.num_heads[0] // 2
    rate = log_decay_rates(config.num_heads[0], config.decay_start, config.decay_spans[0])[head]
    row, column = height // 2, width // 2
    across, down = (np.exp(rate * np.abs(np.subtract.outer(at, at))) for at in (np.arange(width), np.arange(height)))
    panels: Any = part.subplots(1, 4, width_ratios=(1, 1, 1, 0.9))
    part.suptitle(
        rf"How it is made: head {head} of stage 1, $\gamma$ = {math.exp(rate):.4f}", fontsize=11, x=0.01, ha="left"
    )
    drawn = [
        (across, r"along a row: $\gamma^{|w - w'|}$", "w'", "w, of the query", column),
        (down, r"$\times$ along a column: $\gamma^{|h - h'|}$", "h'", "h, of the query", row),
    ]
    for panel, (factor, title, x, y, at) in zip(panels, drawn, strict=False):
        _draw_map(panel, factor)
        panel.axhspan(at - 1, at + 1, fill=False, edgecolor=ORANGE, linewidth=1.2)
        panel.set(xlabel=x, ylabel=y)
        panel.set_title(title, fontsize=10)
    image = _draw_map(panels[2], np.outer(down[row], across[column]))
    panels[2].plot(column, row, "X", color=ORANGE, markeredgecolor="white", markersize=9)
    panels[2].set(xlabel="w'", ylabel="h'")
    panels[2].set_title(r"= of the marked query: $\gamma^{|h - h'| + |w - w'|}$", fontsize=10)
    part.colorbar(image, ax=panels[2], shrink=0.9, label="decay")
    panels[3].axis("off")
    panels[3].text(0, 1, _DECOMPOSED, fontsize=9, va="top", transform=panels[3].transAxes, linespacing=1.35)


def _draw_stage(part: SubFigure, config: RMTConfig, stage: int, size: tuple[int, int], lines: int) -> None:
    heads, (height, width), stride = config.num_heads[stage - 1], size, _stride(stage)
    rates = log_decay_rates(heads, config.decay_start, config.decay_spans[stage - 1])
    form = "decomposed: along rows, then columns" if config.decomposed[stage - 1] else "full: all positions at once"
    part.suptitle(
        f"Stage {stage}: {width}x{height} positions of {stride}x{stride} pixels, {form}", fontsize=11, x=0.01, ha="left"
    )
    halves: Any = part.subfigures(1, 2, width_ratios=(_COLUMNS, 3.2))
    left, right = halves
    position = height // 2, width // 2
    maps = decay_map(config, stage=stage, size=size, position=position)
    panels: Any = left.subplots(lines, _COLUMNS, squeeze=False)
    for panel in panels.flat[heads:]:
        panel.axis("off")
    for head, (panel, decay, rate) in enumerate(zip(panels.flat, maps, rates, strict=False)):
        _draw_map(panel, decay)
        panel.set(xticks=[], yticks=[])
        half = math.log(0.5) / rate  # steps
        if decay.min() < 0.5 and min(size) > 1:
            panel.contour(decay, levels=[0.5], colors=[ORANGE], linewidths=1.2)
        panel.set_title(
            rf"head {head}, $\gamma$ {math.exp(rate):.4f}" + f"\nhalf at {half * stride:,.0f} px", fontsize=7.5, pad=3
        )
    _draw_falls(right, rates, max(size), stride)


def _draw_falls(part: SubFigure, rates: np.ndarray, length: int, stride: int) -> None:
    """Decay against the distance along an axis: a line for each head, the first the darkest."""
    panel = part.subplots()
    distance = np.arange(max(length, 2))
    for rate, colour in zip(rates, colormaps[_COLOURS](np.linspace(0, 0.92, len(rates))), strict=True):
        panel.plot(distance, np.exp(rate * distance), color=colour, linewidth=1.5)
    panel.axhline(0.5, color=ORANGE, linewidth=0.9, linestyle="--")
    panel.set_ylim(0, 1.03)
    panel.set_xlim(0, distance[-1])
    panel.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    panel.set_xlabel(f"distance, in positions of {stride} px", fontsize=8)
    panel.set_ylabel("decay", fontsize=8)
    panel.tick_params(labelsize=8)
    panel.grid(color="#E5E5E5", linewidth=0.8)
    panel.spines[["top", "right"]].set_visible(False)
    for head in {0, len(rates) - 1}:
        height = math.exp(rates[head] * distance[-1]) / 1.03
        panel.text(1.02, height, f"head {head}", fontsize=7.5, va="center", color=GREY, transform=panel.transAxes)


def _draw_map(panel: Axes, decay: np.ndarray) -> Any:
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    return panel.imshow(decay, cmap=_COLOURS, vmin=0, vmax=1, interpolation="nearest")
