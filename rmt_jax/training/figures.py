"""Pictures with what is predicted of them: predictions.png. And what all figures share: colours, names, files.

Drawn on `matplotlib.figure.Figure` objects, without pyplot: no display is needed and no global state is touched.
"""

import io
import math
import pathlib
from collections.abc import Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch

from rmt_jax.training.metrics import replace_file

# Okabe and Ito's palette, which the colour-blind can tell apart, without the yellow that white paper swallows.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
BLUE, ORANGE, GREEN, *_ = PALETTE
GREY = "#555555"
_RED = "#C00000"  # of mistakes, which have a mark as well

FORMATS = (".png", ".svg", ".pdf")  # of the files that figures are written to

_COLUMNS = 10


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


def save_figure(figure: Figure, path: pathlib.Path) -> None:
    """Write a figure, whole or not at all, in the format that the name ends in: one of `FORMATS`.

    The same figure gives the same bytes: without dates, and with names inside of an SVG that are no random ones.
    """
    kind = path.suffix.lower().removeprefix(".")
    picture = io.BytesIO()
    with rc_context({"svg.hashsalt": "rmt_jax"}):
        figure.savefig(picture, format=kind, metadata={"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind))
    replace_file(path, picture.getvalue())
