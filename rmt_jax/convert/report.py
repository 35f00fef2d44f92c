"""What a conversion did, tensor by tensor."""

import csv
import io
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from rmt_jax.convert.names import CONSTANTS, COPY, torch_key, transform
from rmt_jax.convert.weights import Weights


class Row(NamedTuple):
    """One entry of the source. The shape is the target's; mean and maximum are of the values."""

    source: str
    target: str
    shape: str
    transform: str
    mean: str
    max: str


def report_rows(weights: Weights, *, to_torch: bool) -> Iterator[Row]:
    """A row for every array, for every entry without weights, and for every entry that was left out.

    Args:
        weights: as read.
        to_torch: whether the destination has upstream's names and layouts.
    """
    from_torch = bool(weights.source_keys)
    for path, array in weights.arrays.items():
        change = transform(path, array.ndim)
        target = change.to_torch(array) if to_torch else array
        if from_torch == to_torch or change is COPY:
            words = COPY.name
        else:
            words = change.name if from_torch else " -> ".join(reversed(change.name.split(" -> ")))
        yield _row(
            weights.source_keys.get(path, path), torch_key(path, weights.task) if to_torch else path, target, words
        )
    prefix = weights.provenance.get("prefix", "")
    for key, array in weights.buffers.items():
        yield _row(prefix + key, key, array, "constant, checked" if CONSTANTS.match(key) else "counter, kept")
    for key, shape in weights.left_out.items():
        yield Row(key, "", _shape(shape), "left out", "", "")


def report_csv(rows: Iterator[Row]) -> str:
    """The rows as CSV, with a header."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Row._fields)
    writer.writerows(rows)
    return text.getvalue()


def report_text(rows: Iterator[Row]) -> str:
    """The rows in columns, each line as long as it needs to be."""
    table = [Row._fields, *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(Row._fields))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in table)


def _row(source: str, target: str, array: np.ndarray, words: str) -> Row:
    values = array.astype(np.float64)
    return Row(source, target, _shape(array.shape), words, f"{values.mean():.6g}", f"{values.max():.6g}")


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"
