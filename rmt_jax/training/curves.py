"""The course of runs: curves.png of one, and several in one picture."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from rmt_jax.training.figures import BLUE, GREEN, GREY, ORANGE, PALETTE, save_figure

Metrics = Sequence[Mapping[str, Any]]  # lines of metrics.jsonl, in order

_Style = Literal["-", "--", ":"]

_METRICS = {"top1": "top-1 accuracy", "mIoU": "mIoU", "box_AP": "box AP"}
_STYLES: tuple[_Style, ...] = ("-", "--", ":")
_FEW = 10  # points of a line that are marked, and not smoothed
MOST_RUNS = len(PALETTE) * len(_STYLES)  # with more, two would look the same


class _Series(NamedTuple):
    x: np.ndarray
    y: np.ndarray
    omitted: int  # values that were NaN or infinite


class _Line(NamedTuple):
    series: _Series
    colour: str
    style: _Style


def plot_curves(metrics: Metrics, path: pathlib.Path) -> None:
    """Write `draw_curves` of one run, as curves.png of its workdir."""
    save_figure(draw_curves({"": metrics}), path)


def draw_curves(runs: Mapping[str, Metrics]) -> Figure:
    """Loss, validation metric, learning rate and speed over the epochs (over the steps where epochs are missing).

    Of one run, the raw weights and their moving average have a colour each; of several every run has, and a legend says
    which. Non-finite values are left out and counted. The validation metric is val/top1, else val/mIoU, else
    val/box_AP, in percent, with its EMA from val_ema/.

    Args:
        runs: the lines of each run's metrics.jsonl, by its name.

    Raises:
        ValueError: too many runs to tell apart, or runs whose metrics are not the same.
    """
    if len(runs) > MOST_RUNS:
        raise ValueError(f"{len(runs)} runs: at most {MOST_RUNS} can be told apart in one picture.")
    lines = [line for metrics in runs.values() for line in metrics]
    axis = "epoch" if lines and all("epoch" in line for line in lines) else "step"
    metric = _common_metric(runs)
    colours = [PALETTE[index % len(PALETTE)] for index in range(len(runs))]
    styles = [_STYLES[index // len(PALETTE)] for index in range(len(runs))]
    figure = Figure(figsize=(11, 6.5), dpi=120, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1))
    panels = figure.subplots(2, 2, height_ratios=(3, 2), sharex=True)

    def found(key: str, only: str) -> list[_Line]:
        """A line for each run, in a colour of its own or, of one run, in that one."""
        named = colours if len(runs) > 1 else [only]
        series = (_series(metrics, axis, key) for metrics in runs.values())
        return [_Line(*parts) for parts in zip(series, named, styles, strict=True)]

    _plot_loss(panels[0, 0], found("train/loss", BLUE))
    raw, ema = found(f"val/{metric}", BLUE), found(f"val_ema/{metric}", ORANGE)
    _label(panels[0, 1], f"Validation {_METRICS[metric]}", f"{_METRICS[metric]} (%)", raw)
    if len(runs) == 1:
        _plot_validation(panels[0, 1], raw[0].series, ema[0].series)
    else:
        _plot_validations(panels[0, 1], raw, ema)
        _add_legend(figure, list(runs), raw, ema)
    _plot_plain(panels[1, 0], found("train/lr", GREEN), "Learning rate", "learning rate")
    _plot_plain(panels[1, 1], found("train/images_per_second", GREY), "Training speed", "images/s")
    for panel in panels.flat:
        panel.grid(color="#E5E5E5", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_xlim(left=0)
    for panel in panels[1]:
        panel.set_xlabel(axis)
        panel.xaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10]))
    return figure


def _common_metric(runs: Mapping[str, Metrics]) -> str:
    """The metric of all runs that have been evaluated."""
    metrics = {
        run: next((name for name in _METRICS if any(f"val/{name}" in line for line in lines)), None)
        for run, lines in runs.items()
    }
    known = {run: name for run, name in metrics.items() if name is not None}
    if len(set(known.values())) > 1:
        named = ", ".join(f"{run} has {_METRICS[name]}" for run, name in known.items())
        raise ValueError(f"These runs are not of one task: {named}. Draw those of each task in a picture of their own.")
    return next(iter(known.values()), "top1")


def _series(metrics: Metrics, axis: str, key: str) -> _Series:
    found = [(line[axis], line[key]) for line in metrics if key in line]
    x, y = np.asarray(found, dtype=np.float64).reshape(-1, 2).T
    finite = np.isfinite(y)
    return _Series(x[finite], y[finite], int(np.sum(~finite)))


def _plot_loss(panel: Axes, lines: Sequence[_Line]) -> None:
    _label(panel, "Training loss", "loss", lines)
    for (x, y, _), colour, style in lines:
        if len(y) < _FEW:
            panel.plot(x, y, style, color=colour, marker="o", markersize=4)
            continue
        panel.plot(x, y, color=colour, alpha=0.25, linewidth=0.8, label="as logged")
        panel.plot(x, _smooth(y), style, color=colour, linewidth=1.8, label="smoothed")
    handles, labels = panel.get_legend_handles_labels()
    if handles:
        panel.legend(handles[:2], labels[:2], frameon=False, loc="upper right")


def _smooth(values: np.ndarray) -> np.ndarray:
    """Gaussian mean around each value, which does not lag behind as a running mean would."""
    reach = max(2, len(values) // 40)
    kernel = np.exp(-0.5 * np.linspace(-2, 2, 2 * reach + 1) ** 2)
    # Dividing by the weight inside the curve keeps both ends free of bias towards zero.
    return np.convolve(values, kernel, "same") / np.convolve(np.ones_like(values), kernel, "same")


def _plot_validation(panel: Axes, raw: _Series, ema: _Series) -> None:
    """Of one run: what the lines are, and where they end, stands beside them."""
    lines = [(raw, "weights", BLUE, "o", "-"), (ema, "EMA", ORANGE, "s", "--")]
    lines = [line for line in lines if len(line[0].y)]
    for series, _, colour, marker, style in lines:
        panel.plot(series.x, series.y, color=colour, marker=marker, markersize=4, linestyle=style)
    heights = _spread([_height(panel, series.y[-1]) for series, *_ in lines])
    for (series, label, colour, *_), height in zip(lines, heights, strict=True):
        text = f"{label}\n{series.y[-1]:.2f} %"
        panel.text(1.02, height, text, color=colour, va="center", fontsize=9, transform=panel.transAxes)


def _plot_validations(panel: Axes, raw: Sequence[_Line], ema: Sequence[_Line]) -> None:
    """Of several runs: colours say which run; thin and pale lines are its weights, thick ones their moving average."""
    few = all(len(line.series.y) < _FEW for line in (*raw, *ema))
    handles = []
    for lines, label, marker, fill, width, alpha in (
        (raw, "weights", "o", None, 1.0, 0.6),
        (ema, "EMA", "s", "white", 2.0, 1.0),
    ):
        look: dict[str, Any] = {
            "linewidth": width,
            "alpha": alpha,
            "marker": marker if few else None,
            "markersize": 4.5,
        }
        for (x, y, _), colour, style in lines:
            panel.plot(x, y, style, color=colour, markerfacecolor=fill or colour, **look)
        handles.append(Line2D([], [], color=GREY, label=label, markerfacecolor=fill or GREY, **look))
    panel.legend(handles=handles, frameon=False)


def _add_legend(figure: Figure, names: Sequence[str], raw: Sequence[_Line], ema: Sequence[_Line]) -> None:
    """Below the panels: each run with the last value of its weights and of their moving average."""
    handles = []
    for name, weights, average in zip(names, raw, ema, strict=True):
        values = [f"{series.y[-1]:.2f} %" for series in (weights.series, average.series) if len(series.y)]
        text = f"{name}: {' / '.join(values)}" if values else name
        # The space: matplotlib leaves labels out that begin with an underscore.
        handles.append(Line2D([], [], color=weights.colour, linestyle=weights.style, linewidth=2.5, label=f" {text}"))
    legend = figure.legend(handles=handles, loc="outside lower center", ncols=min(3, len(names)), frameon=False)
    legend.set_title("last value of the weights / of their EMA")
    for label in legend.get_texts():
        label.set_parse_math(False)


def _height(panel: Axes, value: float) -> float:
    low, high = panel.get_ylim()
    return float((value - low) / (high - low))


def _spread(heights: list[float], gap: float = 0.14) -> list[float]:
    """Heights of two labels, moved apart where they would overlap."""
    if len(heights) < 2 or abs(heights[0] - heights[1]) >= gap:
        return heights
    middle, up = sum(heights) / 2, 1 if heights[0] >= heights[1] else -1
    return [middle + up * gap / 2, middle - up * gap / 2]


def _plot_plain(panel: Axes, lines: Sequence[_Line], title: str, unit: str) -> None:
    _label(panel, title, unit, lines)
    for (x, y, _), colour, style in lines:
        panel.plot(x, y, style, color=colour, linewidth=1.5, marker="o" if len(y) < _FEW else None, markersize=4)
    panel.yaxis.set_major_formatter("{x:.4g}")
    # From zero, so that a small ripple does not look like a collapse.
    panel.set_ylim(0, 1.1 * max((max(line.series.y, default=0.0) for line in lines), default=0.0) or 1.0)


def _label(panel: Axes, title: str, unit: str, lines: Sequence[_Line]) -> None:
    omitted = sum(line.series.omitted for line in lines)
    if omitted:
        title += f" ({omitted} non-finite left out)"
    panel.set_title(title, fontsize=11, loc="left")
    panel.set_ylabel(unit)
    if not any(len(line.series.y) for line in lines):
        panel.set_yticks([])
        panel.text(0.5, 0.5, "nothing yet", transform=panel.transAxes, ha="center", va="center", color=GREY)
