"""The picture of a confusion matrix that is too large to be drawn: a thousand classes, the most confused ones."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from rmt_jax.training.figures import BLUE, GREY, ORANGE, short_name

MOST_PAIRS = 25
_BINS = 25


class Pair(NamedTuple):
    """A class that is taken for another."""

    true: int
    predicted: int
    number: int
    share: float  # of the true class, 0 to 1


def draw_overview(counts: np.ndarray, class_names: Sequence[str], unit: str, title: str) -> Figure:
    """The pairs that are confused most, the classes that fare worst; accuracy, precision and size of all classes.

    Args:
        counts: int64 [classes classes], rows are true classes.
        class_names: by label.
        unit: what is counted, "pictures" or "pixels".
        title: of the figure.
    """
    sizes = counts.sum(axis=1)
    accuracy = 100 * np.diagonal(counts) / np.maximum(sizes, 1)
    figure = Figure(figsize=(14, 8.5), dpi=120, layout="constrained")
    figure.suptitle(title, fontsize=12, x=0.01, ha="left", parse_math=False)
    panels = figure.subplot_mosaic(
        [["pairs", "classes", "accuracy"], ["pairs", "classes", "precision"]], width_ratios=(5, 5, 4)
    )
    _draw_pairs(panels["pairs"], most_confused(counts), class_names, unit)
    _draw_lowest(panels["classes"], accuracy, sizes, class_names, unit)
    _draw_accuracy(panels["accuracy"], accuracy[sizes > 0])
    _draw_precision(figure, panels["precision"], counts, accuracy, unit)
    for panel in panels.values():
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_axisbelow(True)
    return figure


def most_confused(counts: np.ndarray, limit: int = MOST_PAIRS) -> list[Pair]:
    """The pairs with the largest counts off the diagonal; of equal ones those with the larger share come first."""
    wrong = counts - np.diag(np.diagonal(counts))
    shares = wrong / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    order = np.lexsort((-shares.ravel(), -wrong.ravel()))[:limit]
    pairs = (divmod(int(index), len(counts)) for index in order)
    return [
        Pair(row, column, int(wrong[row, column]), float(shares[row, column]))
        for row, column in pairs
        if wrong[row, column]
    ]


def _draw_pairs(panel: Axes, pairs: Sequence[Pair], class_names: Sequence[str], unit: str) -> None:
    names = [
        f"{short_name(class_names[pair.true], 18)} → {short_name(class_names[pair.predicted], 18)}" for pair in pairs
    ]
    bars = panel.barh(range(len(pairs)), [pair.number for pair in pairs], color=ORANGE)
    panel.bar_label(bars, [f"{pair.number:,} ({100 * pair.share:.0f} %)" for pair in pairs], padding=3, fontsize=8)
    _name_rows(panel, names)
    panel.margins(x=0.25)
    panel.set_xlabel(f"{unit} of the first that are taken for the second (share of the first)", fontsize=9)
    panel.set_title("Most confused pairs: true → predicted", fontsize=11, loc="left")


def _draw_lowest(panel: Axes, accuracy: np.ndarray, sizes: np.ndarray, class_names: Sequence[str], unit: str) -> None:
    """Of classes without pictures nothing is known."""
    lowest = [label for label in np.lexsort((-sizes, accuracy)) if sizes[label]][:MOST_PAIRS]
    bars = panel.barh(range(len(lowest)), accuracy[lowest], color=BLUE)
    panel.bar_label(bars, [f"{accuracy[label]:.0f} % of {sizes[label]:,}" for label in lowest], padding=3, fontsize=8)
    _name_rows(panel, [short_name(class_names[label], 20) for label in lowest])
    panel.set_xlim(0, 100)
    panel.xaxis.set_major_formatter(PercentFormatter())
    panel.set_xlabel(f"{unit} of the class that are right", fontsize=9)
    panel.set_title("Classes with the lowest accuracy", fontsize=11, loc="left")


def _name_rows(panel: Axes, names: Sequence[str]) -> None:
    """The first on top."""
    panel.set_yticks(range(len(names)), names, fontsize=8, parse_math=False)
    panel.set_ylim(max(len(names), 1) - 0.4, -0.6)
    panel.tick_params(axis="y", length=0)
    if not names:
        panel.text(0.5, 0.5, "none", transform=panel.transAxes, ha="center", va="center", color=GREY)


def _draw_accuracy(panel: Axes, accuracy: np.ndarray) -> None:
    panel.hist(accuracy, bins=_BINS, range=(0, 100), color=BLUE)
    mean = float(accuracy.mean()) if len(accuracy) else 0.0
    panel.axvline(mean, color=ORANGE, linestyle="--", linewidth=1.8)
    panel.text(0.03, 0.95, f"mean {mean:.2f} %", color=ORANGE, va="top", fontsize=9, transform=panel.transAxes)
    panel.set_xlim(0, 100)
    panel.xaxis.set_major_formatter(PercentFormatter())
    panel.set_xlabel("accuracy of a class", fontsize=9)
    panel.set_ylabel("classes", fontsize=9)
    panel.set_title(f"Accuracy of {len(accuracy):,} classes", fontsize=11, loc="left")


def _draw_precision(figure: Figure, panel: Axes, counts: np.ndarray, accuracy: np.ndarray, unit: str) -> None:
    """A dot for each class that is there and that is predicted; coloured by its size where sizes differ."""
    sizes, predicted = counts.sum(axis=1), counts.sum(axis=0)
    shown = (sizes > 0) & (predicted > 0)
    precision = 100 * np.diagonal(counts)[shown] / predicted[shown]
    dots: dict[str, Any] = {"s": 14, "alpha": 0.6, "edgecolors": "none"}
    if shown.any() and sizes[shown].max() > sizes[shown].min():
        found = panel.scatter(precision, accuracy[shown], c=sizes[shown], cmap="cividis", norm="log", **dots)
        figure.colorbar(found, ax=panel, label=f"{unit} of the class")
    else:
        panel.scatter(precision, accuracy[shown], color=BLUE, **dots)
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_formatter(PercentFormatter())
    panel.set(xlim=(-2, 102), ylim=(-2, 102))
    panel.grid(color="#E5E5E5", linewidth=0.8)
    panel.set_xlabel("precision: predictions of a class that are right", fontsize=9)
    panel.set_ylabel("accuracy of the class", fontsize=9)
    panel.set_title("Precision and accuracy", fontsize=11, loc="left")
