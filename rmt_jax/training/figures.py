"""The pictures of a run: curves.png and predictions.png.

Drawn on `matplotlib.figure.Figure` objects, without pyplot: no display is needed and no global state is touched.
"""

import io
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from rmt_jax.training.metrics import replace_file

# Okabe and Ito's palette, which the colour-blind can tell apart. Red is for mistakes, which have a mark as well.
_BLUE, _ORANGE, _GREEN, _GREY, _RED = "#0072B2", "#D55E00", "#009E73", "#555555", "#C00000"

_METRICS = {"top1": "top-1 accuracy", "mIoU": "mIoU", "box_AP": "box AP"}
_COLUMNS = 10


class _Series(NamedTuple):
    x: np.ndarray
    y: np.ndarray
    omitted: int  # values that were NaN or infinite


def plot_curves(metrics: Sequence[Mapping[str, Any]], path: pathlib.Path) -> None:
    """Draws loss, validation metric, learning rate and speed over the epochs (over the steps where epochs are missing).

    metrics: lines of metrics.jsonl, in order. Non-finite values are left out and counted. The validation metric is
    val/top1, else val/mIoU, else val/box_AP, in percent, with its EMA from val_ema/.
    """
    axis = "epoch" if metrics and all("epoch" in line for line in metrics) else "step"
    figure = Figure(figsize=(11, 6.5), dpi=120, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1))
    panels = figure.subplots(2, 2, height_ratios=(3, 2), sharex=True)
    _plot_loss(panels[0, 0], _series(metrics, axis, "train/loss"))
    _plot_validation(panels[0, 1], metrics, axis)
    _plot_plain(panels[1, 0], _series(metrics, axis, "train/lr"), "Learning rate", "learning rate", _GREEN)
    speed = _series(metrics, axis, "train/images_per_second")
    _plot_plain(panels[1, 1], speed, "Training speed", "images/s", _GREY)
    for panel in panels.flat:
        panel.grid(color="#E5E5E5", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_xlim(left=0)
    for panel in panels[1]:
        panel.set_xlabel(axis)
        panel.xaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10]))
    save_figure(figure, path)


def plot_predictions(
    images: np.ndarray,
    labels: np.ndarray,
    probabilities: np.ndarray,
    class_names: Sequence[str],
    path: pathlib.Path,
    limit: int = 40,
) -> None:
    """Draws test pictures with label, prediction and confidence: mistakes first, then the least sure of the others.

    images: uint8 [n height width 3]. labels: [n] class numbers. probabilities: [n classes], 0 to 1. limit: the most
    pictures to draw. Raises ValueError for shapes that do not go together.
    """
    count = len(images)
    fitting = images.shape[3:] == (3,) and labels.shape == (count,) and probabilities.shape == (count, len(class_names))
    if not fitting or count == 0:
        raise ValueError(
            "plot_predictions: expected images [n height width 3], labels [n] and probabilities [n classes] with n > 0 "
            f"and a name for each class, got {images.shape}, {labels.shape}, {probabilities.shape} and "
            f"{len(class_names)} names."
        )
    shown = order_predictions(labels, probabilities)[:limit]
    rows, columns = math.ceil(len(shown) / _COLUMNS), min(_COLUMNS, len(shown))
    # Wide enough for the title; each row as high as its pictures and two lines of text, in inches.
    width = max(6.0, 1.25 * columns)
    row_height = width / columns * images.shape[1] / images.shape[2] + 0.4
    figure = Figure(figsize=(width, row_height * rows + 0.6), dpi=120, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for panel in panels.flat:
        panel.axis("off")
    for panel, index in zip(panels.flat, shown, strict=False):
        _draw_prediction(panel, images[index], int(labels[index]), probabilities[index], class_names)
    mistakes = int(np.sum(np.argmax(probabilities, axis=1) != labels))
    figure.suptitle(
        f"{mistakes} {'mistake' if mistakes == 1 else 'mistakes'} in {count} pictures "
        f"({100 * (1 - mistakes / count):.2f} % right)\n{_selection(mistakes, count, len(shown))}",
        fontsize=11,
    )
    save_figure(figure, path)


def order_predictions(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Indices of all pictures: mistakes, the most confident first, then the right ones, the least confident first."""
    predictions = np.argmax(probabilities, axis=1)
    confidence = np.max(probabilities, axis=1)
    wrong = predictions != labels
    return np.lexsort((np.where(wrong, -confidence, confidence), ~wrong))


def _selection(mistakes: int, count: int, shown: int) -> str:
    if shown == count:
        return "all shown: mistakes first, then the least sure"
    if mistakes >= shown:
        return f"the {shown} most confident mistakes are shown"
    if mistakes == 0:
        return f"the {shown} least sure are shown"
    return f"shown: the mistakes, then the {shown - mistakes} least sure of the others"


def _draw_prediction(
    panel: Axes, image: np.ndarray, label: int, probabilities: np.ndarray, class_names: Sequence[str]
) -> None:
    prediction = int(np.argmax(probabilities))
    wrong = prediction != label
    mark, colour = ("✗", _RED) if wrong else ("✓", "black")
    text = f"{mark} {short_name(class_names[prediction])}  {100 * probabilities[prediction]:.0f} %"
    # An empty second line keeps all pictures of a row at the same height.
    text += f"\nis {short_name(class_names[label])}" if wrong else "\n"
    panel.imshow(image, interpolation="nearest" if max(image.shape) <= 64 else "antialiased")
    panel.set_title(text, fontsize=8, color=colour, pad=3, parse_math=False)
    if wrong:
        panel.axis("on")
        panel.set(xticks=[], yticks=[])
        for spine in panel.spines.values():
            spine.set(color=_RED, linewidth=2.0)


def plot_label_maps(
    pictures: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
    colours: np.ndarray,
    class_names: Sequence[str],
    path: pathlib.Path,
) -> None:
    """Draws pictures, their label maps and the predicted ones in a row each, with the names of the classes in them.

    Args:
        pictures: (uint8 RGB [height width 3], labels [height width], predicted classes [height width]) each; labels of
            255 stay black.
        colours: uint8 [classes 3].
        class_names: by label.
        path: of the PNG.
    """
    figure = Figure(figsize=(9, 2.6 * len(pictures) + 0.8), dpi=100, layout=ConstrainedLayoutEngine())
    panels = figure.subplots(len(pictures), 3, squeeze=False)
    shown = np.zeros(256, bool)
    for row, (image, label, classes) in zip(panels, pictures, strict=True):
        for panel, drawn in zip(row, (image, _coloured(label, colours), _coloured(classes, colours)), strict=True):
            panel.imshow(drawn, interpolation="nearest" if max(drawn.shape) <= 200 else "antialiased")
            panel.axis("off")
        shown[np.unique(label)] = shown[np.unique(classes)] = True
    for panel, title in zip(panels[0], ("picture", "labels", "prediction"), strict=True):
        panel.set_title(title, fontsize=10)
    handles = [
        Patch(color=colours[label] / 255, label=short_name(class_names[label], 20))
        for label in np.flatnonzero(shown[: len(class_names)])[:24]
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=6, fontsize=7, frameon=False)
    save_figure(figure, path)


def _coloured(labels: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """uint8 [height width 3]; labels without a colour are black."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(colours)] = colours
    return table[labels]


def short_name(name: str, limit: int = 12) -> str:
    """A name with at most `limit` characters."""
    return name if len(name) <= limit else name[: limit - 1] + "…"


def _series(metrics: Sequence[Mapping[str, Any]], axis: str, key: str) -> _Series:
    found = [(line[axis], line[key]) for line in metrics if key in line]
    x, y = np.asarray(found, dtype=np.float64).reshape(-1, 2).T
    finite = np.isfinite(y)
    return _Series(x[finite], y[finite], int(np.sum(~finite)))


def _plot_loss(panel: Axes, loss: _Series) -> None:
    _label(panel, "Training loss", "loss", loss)
    if len(loss.y) < 10:
        panel.plot(loss.x, loss.y, color=_BLUE, marker="o", markersize=4)
        return
    panel.plot(loss.x, loss.y, color=_BLUE, alpha=0.25, linewidth=0.8, label="as logged")
    panel.plot(loss.x, _smooth(loss.y), color=_BLUE, linewidth=1.8, label="smoothed")
    panel.legend(frameon=False, loc="upper right")


def _smooth(values: np.ndarray) -> np.ndarray:
    """Gaussian mean around each value, which does not lag behind as a running mean would."""
    reach = max(2, len(values) // 40)
    kernel = np.exp(-0.5 * np.linspace(-2, 2, 2 * reach + 1) ** 2)
    # Dividing by the weight inside the curve keeps both ends free of bias towards zero.
    return np.convolve(values, kernel, "same") / np.convolve(np.ones_like(values), kernel, "same")


def _plot_validation(panel: Axes, metrics: Sequence[Mapping[str, Any]], axis: str) -> None:
    name = next((name for name in _METRICS if any(f"val/{name}" in line for line in metrics)), "top1")
    raw, ema = _series(metrics, axis, f"val/{name}"), _series(metrics, axis, f"val_ema/{name}")
    _label(panel, f"Validation {_METRICS[name]}", f"{_METRICS[name]} (%)", raw)
    lines = [(raw, "weights", _BLUE, "o", "-"), (ema, "EMA", _ORANGE, "s", "--")]
    lines = [line for line in lines if len(line[0].y)]
    for series, _, colour, marker, style in lines:
        panel.plot(series.x, series.y, color=colour, marker=marker, markersize=4, linestyle=style)
    heights = _spread([_height(panel, series.y[-1]) for series, *_ in lines])
    for (series, label, colour, *_), height in zip(lines, heights, strict=True):
        text = f"{label}\n{series.y[-1]:.2f} %"
        panel.text(1.02, height, text, color=colour, va="center", fontsize=9, transform=panel.transAxes)


def _height(panel: Axes, value: float) -> float:
    low, high = panel.get_ylim()
    return float((value - low) / (high - low))


def _spread(heights: list[float], gap: float = 0.14) -> list[float]:
    """Heights of two labels, moved apart where they would overlap."""
    if len(heights) < 2 or abs(heights[0] - heights[1]) >= gap:
        return heights
    middle, up = sum(heights) / 2, 1 if heights[0] >= heights[1] else -1
    return [middle + up * gap / 2, middle - up * gap / 2]


def _plot_plain(panel: Axes, series: _Series, title: str, unit: str, colour: str) -> None:
    _label(panel, title, unit, series)
    panel.plot(
        series.x, series.y, color=colour, linewidth=1.5, marker="o" if len(series.y) < 10 else None, markersize=4
    )
    panel.yaxis.set_major_formatter("{x:.4g}")
    # From zero, so that a small ripple does not look like a collapse.
    panel.set_ylim(0, 1.1 * max(series.y, default=1.0) or 1.0)


def _label(panel: Axes, title: str, unit: str, series: _Series) -> None:
    if series.omitted:
        title += f" ({series.omitted} non-finite left out)"
    panel.set_title(title, fontsize=11, loc="left")
    panel.set_ylabel(unit)
    if not len(series.y):
        panel.set_yticks([])
        panel.text(0.5, 0.5, "nothing yet", transform=panel.transAxes, ha="center", va="center", color=_GREY)


def save_figure(figure: Figure, path: pathlib.Path) -> None:
    """Write a PNG, whole or not at all."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    replace_file(path, picture.getvalue())
