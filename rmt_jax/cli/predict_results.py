"""What `rmt predict` says and writes of a picture, of each kind of model."""

import argparse
import itertools
import json
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from rmt_jax.data.pictures import Picture
from rmt_jax.data.segmentation import palette
from rmt_jax.tasks import encode_mask
from rmt_jax.training.class_figures import SHOWN, draw_classes
from rmt_jax.training.metrics import replace_file
from rmt_jax.training.object_figures import draw_objects
from rmt_jax.training.prediction import Predictor
from rmt_jax.training.segmentation import overlay, png

MOST = 10  # classes that are shown of a segmented picture

COLUMNS = {
    "classification": ("picture", "rank", "label", "class", "probability"),
    "segmentation": ("picture", "label", "class", "share"),
    "detection": ("picture", "label", "class", "score", "x1", "y1", "x2", "y2"),
}


class Result(NamedTuple):
    """What is said of a picture.

    Attributes:
        name: of the picture.
        lines: to read.
        entries: for JSON: the classes or the objects.
        rows: for CSV, without the picture's name, see `COLUMNS`.
    """

    name: str
    lines: list[str]
    entries: list[dict[str, Any]]
    rows: list[tuple[Any, ...]]


def predict(
    predictor: Predictor, pictures: Iterable[Picture], options: argparse.Namespace, size: int
) -> Iterator[Result]:
    """The results of pictures, in their order; what they are drawn into is written.

    Args:
        predictor: of a classifier, a segmentor or a detector.
        pictures: one after the other.
        options: of the command.
        size: of a classifier's batches.
    """
    if not predictor.segments and not predictor.detects:
        yield from _classify(predictor, pictures, options, size)
        return
    for name, stem, image in pictures:
        path = (options.save or pathlib.Path()) / stem
        path.parent.mkdir(parents=True, exist_ok=True)
        if predictor.segments:
            yield _segment(predictor, name, image, path)
        else:
            yield _detect(predictor, name, image, path, options.score)


def _classify(
    predictor: Predictor, pictures: Iterable[Picture], options: argparse.Namespace, size: int
) -> Iterator[Result]:
    def prepared() -> Iterator[tuple[Picture, np.ndarray]]:
        for picture in pictures:
            pixels = predictor.prepare(picture.image)
            picture.image.thumbnail(SHOWN)  # so that a batch of large ones takes little memory
            yield picture, pixels

    batches = prepared()
    while batch := list(itertools.islice(batches, size)):
        found = predictor.batch_probabilities([pixels for _, pixels in batch], size)
        for (picture, _), probabilities in zip(batch, found, strict=True):
            best = np.argsort(-probabilities, kind="stable")[: options.top]
            if options.save is not None:
                path = options.save / picture.stem.with_name(f"{picture.stem.name}_classes.png")
                path.parent.mkdir(parents=True, exist_ok=True)
                names = [predictor.class_names[label] for label in best]
                replace_file(path, draw_classes(picture.image, names, probabilities[best]))
            yield _top(predictor.class_names, picture.name, best, probabilities)


def _top(class_names: Sequence[str], name: str, best: np.ndarray, probabilities: np.ndarray) -> Result:
    rows = [
        (rank, int(label), class_names[label], float(probabilities[label])) for rank, label in enumerate(best, start=1)
    ]
    return Result(
        name,
        [f"{100 * probability:5.1f} %  {text}" for _, _, text, probability in rows],
        [{"label": label, "class": text, "probability": probability} for _, label, text, probability in rows],
        rows,
    )


def _segment(predictor: Predictor, name: str, image: Image.Image, stem: pathlib.Path) -> Result:
    classes, colours = predictor.classes(image), palette(len(predictor.class_names))
    shares = np.bincount(classes.ravel(), minlength=len(colours)) / classes.size
    order = [int(label) for label in np.argsort(-shares, kind="stable") if shares[label]]
    rows = [(label, predictor.class_names[label], float(shares[label])) for label in order]
    labels, over = (stem.with_name(f"{stem.name}_{what}.png") for what in ("labels", "overlay"))
    replace_file(labels, png(classes, colours))
    replace_file(over, png(overlay(np.asarray(image), classes, colours)))
    return Result(
        name,
        [*(f"{100 * share:5.1f} %  {text}" for _, text, share in rows[:MOST]), f"{labels}, {over}"],
        [{"label": label, "class": text, "share": share} for label, text, share in rows],
        rows,
    )


def _detect(predictor: Predictor, name: str, image: Image.Image, stem: pathlib.Path, score: float) -> Result:
    found, names = predictor.objects(image), predictor.class_names
    entries = [
        {"class": names[label], "score": float(value), "box": [round(side, 2) for side in box]}
        for label, value, box in zip(found.labels, found.scores, found.boxes.tolist(), strict=True)
    ]
    for entry, mask in zip(entries, () if found.masks is None else found.masks, strict=False):
        entry["mask"] = encode_mask(mask)
    shown = found.above(score)
    objects, over = stem.with_name(f"{stem.name}_objects.json"), stem.with_name(f"{stem.name}_overlay.png")
    replace_file(objects, (json.dumps(entries, indent=1) + "\n").encode())
    replace_file(over, png(draw_objects(np.asarray(image), shown, names)))
    entries = entries[: len(shown.scores)]
    lines = [
        f"{100 * entry['score']:5.1f} %  {entry['class']}  {x1:.0f},{y1:.0f} .. {x2:.0f},{y2:.0f}"
        for entry in entries
        for x1, y1, x2, y2 in [entry["box"]]
    ]
    lines.append(f"{len(entries)} of {len(found.scores)} objects: {objects}, {over}")
    rows = [
        (int(label), entry["class"], entry["score"], *entry["box"])
        for label, entry in zip(shown.labels, entries, strict=True)
    ]
    return Result(name, lines, entries, rows)
