"""The picture of which classes are taken for which: confusion.png."""

import pathlib
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rmt_jax.training.figures import save_figure, short_name

MOST_COUNTED_CLASSES = 20  # with more, numbers do not fit into the cells
_COLOURS = "Blues"


def plot_confusion(confusion: np.ndarray, class_names: Sequence[str], title: str, path: pathlib.Path) -> None:
    """Draws a row for each true class and a column for each predicted one, coloured by the share of the row.

    confusion: counts [classes classes]. class_names: by label. Raises ValueError for shapes that do not go together.
    """
    classes = len(class_names)
    if confusion.shape != (classes, classes) or not classes:
        raise ValueError(
            f"plot_confusion: expected [classes classes] with a name for each class, got {confusion.shape} and "
            f"{classes} names."
        )
    names = [short_name(name, 16) for name in class_names]
    side = max(4.0, (0.5 if classes <= MOST_COUNTED_CLASSES else 0.26) * classes)
    longest = max(map(len, names))
    margin = 1.2 + 0.09 * longest  # inches for names and titles of the axes
    figure = Figure(figsize=(side + margin + 0.9, side + margin), dpi=120, layout="constrained")
    panel = figure.subplots()
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    image = panel.imshow(shares, cmap=_COLOURS, vmin=0, vmax=1, interpolation="nearest")
    # Names as long as numbers fit below the columns, longer ones do not.
    panel.set_xticks(range(classes), names, rotation=90 if longest > 3 else 0, fontsize=9, parse_math=False)
    panel.set_yticks(range(classes), names, fontsize=9, parse_math=False)
    panel.set_xlabel("predicted class", fontsize=10)
    panel.set_ylabel("true class", fontsize=10)
    panel.set_title(title, fontsize=11, loc="left", pad=10, parse_math=False)
    _draw_grid(panel, classes)
    if classes <= MOST_COUNTED_CLASSES:
        _draw_counts(panel, confusion, shares)
    bar = figure.colorbar(image, ax=panel, fraction=0.045, pad=0.02)
    bar.set_ticks([0, 0.25, 0.5, 0.75, 1], labels=["0 %", "25 %", "50 %", "75 %", "100 %"])
    bar.set_label("share of the true class", fontsize=10)
    bar.outline.set_visible(False)
    save_figure(figure, path)


def _draw_grid(panel: Axes, classes: int) -> None:
    """White lines between the cells, and no frame."""
    edges = np.arange(1, classes) - 0.5
    panel.set_xticks(edges, minor=True)
    panel.set_yticks(edges, minor=True)
    panel.grid(which="minor", color="#E6E6E6", linewidth=0.6)
    panel.tick_params(which="both", length=0)
    panel.spines[:].set_color("#BBBBBB")


def _draw_counts(panel: Axes, confusion: np.ndarray, shares: np.ndarray) -> None:
    """The number of pictures in each cell that has any, light on dark and dark on light."""
    for row, column in zip(*np.nonzero(confusion), strict=True):
        count = int(confusion[row, column])
        panel.text(
            column,
            row,
            f"{count:,}",
            ha="center",
            va="center",
            fontsize=9 if count < 1000 else 7,
            color="white" if shares[row, column] > 0.55 else "black",
            fontweight="normal" if row == column else "bold",
        )
