"""Which classes are taken for which: confusion.npz of an evaluation, and its picture, confusion.png."""

import io
import pathlib
import zipfile
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rmt_jax.training.confusion_overview import draw_overview
from rmt_jax.training.figures import save_figure, short_name
from rmt_jax.training.metrics import replace_file

FILE, PICTURE = "confusion.npz", "confusion.png"
MOST_WHOLE_CLASSES = 50  # with more, cells are too small to be told apart
MOST_COUNTED_CLASSES = 20  # with more, numbers do not fit into the cells
_COLOURS = "Blues"


class Confusion(NamedTuple):
    """What an evaluation found.

    Attributes:
        counts: int64 [classes classes], those of the class of the row that were taken for that of the column.
        class_names: by label.
        unit: what is counted, "pictures" or "pixels".
        title: what was evaluated, and how well.
    """

    counts: np.ndarray
    class_names: tuple[str, ...]
    unit: str
    title: str


def write_confusion(workdir: pathlib.Path, confusion: Confusion) -> None:
    """Write confusion.npz and confusion.png."""
    arrays = io.BytesIO()
    names = np.array(confusion.class_names, dtype=np.str_)
    np.savez_compressed(
        arrays,
        counts=confusion.counts,
        class_names=names,
        unit=np.str_(confusion.unit),
        title=np.str_(confusion.title),
    )
    replace_file(workdir / FILE, arrays.getvalue())
    save_figure(draw_confusion(confusion), workdir / PICTURE)


def read_confusion(workdir: pathlib.Path) -> Confusion:
    """What `write_confusion` wrote.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged.
    """
    path = workdir / FILE
    if not workdir.is_dir():
        raise FileNotFoundError(f"There is no directory {workdir}.")
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no {FILE} in {workdir}. An evaluation of a classifier or segmentor writes it: at the end of a "
            f"run, or python main.py --workdir={workdir} --mode=eval with the --config of the run."
        )
    try:
        with np.load(io.BytesIO(path.read_bytes())) as arrays:
            names = tuple(str(name) for name in arrays["class_names"])
            return Confusion(arrays["counts"], names, str(arrays["unit"]), str(arrays["title"]))
    except (zipfile.BadZipFile, KeyError, ValueError, EOFError) as error:
        raise ValueError(f"{path} is damaged ({error}): evaluate again with --mode=eval, which writes it.") from error


def draw_confusion(confusion: Confusion) -> Figure:
    """A row for each true class and a column for each predicted one, coloured by the share of the row.

    Of more than `MOST_WHOLE_CLASSES`, the classes that are confused most, see `draw_overview`.

    Raises:
        ValueError: shapes that do not go together.
    """
    counts, names = confusion.counts, confusion.class_names
    classes = len(names)
    if counts.shape != (classes, classes) or not classes:
        raise ValueError(
            f"draw_confusion: expected counts [classes classes] with a name for each class, got {counts.shape} and "
            f"{classes} names."
        )
    if classes > MOST_WHOLE_CLASSES:
        return draw_overview(counts, names, confusion.unit, confusion.title)
    names = tuple(short_name(name, 16) for name in names)
    side = max(4.0, (0.5 if classes <= MOST_COUNTED_CLASSES else 0.26) * classes)
    longest = max(map(len, names))
    margin = 1.2 + 0.09 * longest  # inches for names and titles of the axes
    figure = Figure(figsize=(side + margin + 0.9, side + margin), dpi=120, layout="constrained")
    panel = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = panel.imshow(shares, cmap=_COLOURS, vmin=0, vmax=1, interpolation="nearest")
    # Names as long as numbers fit below the columns, longer ones do not.
    panel.set_xticks(range(classes), names, rotation=90 if longest > 3 else 0, fontsize=9, parse_math=False)
    panel.set_yticks(range(classes), names, fontsize=9, parse_math=False)
    panel.set_xlabel("predicted class", fontsize=10)
    panel.set_ylabel("true class", fontsize=10)
    panel.set_title(confusion.title, fontsize=11, loc="left", pad=10, parse_math=False)
    _draw_grid(panel, classes)
    if classes <= MOST_COUNTED_CLASSES:
        _draw_numbers(panel, counts, shares, confusion.unit)
    bar = figure.colorbar(image, ax=panel, fraction=0.045, pad=0.02)
    bar.set_ticks([0, 0.25, 0.5, 0.75, 1], labels=["0 %", "25 %", "50 %", "75 %", "100 %"])
    numbers = " (numbers: %)" if confusion.unit == "pixels" and classes <= MOST_COUNTED_CLASSES else ""
    bar.set_label(f"share of the true class{numbers}", fontsize=10)
    bar.outline.set_visible(False)
    return figure


def _draw_grid(panel: Axes, classes: int) -> None:
    """White lines between the cells, and no frame."""
    edges = np.arange(1, classes) - 0.5
    panel.set_xticks(edges, minor=True)
    panel.set_yticks(edges, minor=True)
    panel.grid(which="minor", color="#E6E6E6", linewidth=0.6)
    panel.tick_params(which="both", length=0)
    panel.spines[:].set_color("#BBBBBB")


def _draw_numbers(panel: Axes, counts: np.ndarray, shares: np.ndarray, unit: str) -> None:
    """The pictures in each cell that has any, or the share of the pixels; light on dark and dark on light."""
    for row, column in zip(*np.nonzero(counts), strict=True):
        count, share = int(counts[row, column]), shares[row, column]
        if unit == "pixels" and share < 0.001:
            continue
        panel.text(
            column,
            row,
            f"{100 * share:.1f}" if unit == "pixels" else f"{count:,}",
            ha="center",
            va="center",
            fontsize=9 if unit == "pictures" and count < 1000 else 7,
            color="white" if share > 0.55 else "black",
            fontweight="normal" if row == column else "bold",
        )
