"""`rmt predict`: what weights say of pictures."""

import argparse
import json
import pathlib
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:  # the other commands do not need the training
    from rmt_jax.training.prediction import Predictor

DESCRIPTION = """\
Says what is on pictures. Of a classifier the likeliest classes with their probabilities; of a segmentor the classes
that cover most of a picture, and into --output for each PICTURE:

  PICTURE_labels.png    the class of every pixel, an indexed PNG whose values are the classes
  PICTURE_overlay.png   the same in colours over the picture

Of a detector the objects with their scores, and into --output:

  PICTURE_objects.json  all of them: class, score, box (x1, y1, x2, y2), mask as COCO's run lengths
  PICTURE_overlay.png   those above --score over the picture

WEIGHTS is whatever rmt_jax.load_pretrained takes: a directory of `rmt convert`, a checkpoint of the authors, the
workdir of a training run, user/name on the Hugging Face hub.

  rmt predict rmt_s/ cat.jpg
  rmt predict workdir/ade20k street.jpg garden.jpg --output predictions
  rmt predict workdir/coco street.jpg --score 0.5
"""
MOST = 10  # classes that are shown of a segmented picture


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "predict",
        help="what weights say of pictures",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("weights", metavar="WEIGHTS")
    parser.add_argument("pictures", metavar="PICTURE", nargs="+", type=pathlib.Path)
    parser.add_argument("--top", type=int, default=5, metavar="N", help="classes of a classifier (default: 5)")
    parser.add_argument("--output", type=pathlib.Path, metavar="DIR", help="for what is written (default: here)")
    parser.add_argument(
        "--scale",
        type=int,
        nargs=2,
        metavar=("LONG", "SHORT"),
        help="sides (default: 2048 512, of a detector 1333 800)",
    )
    parser.add_argument(
        "--score", type=float, default=0.3, metavar="S", help="of objects that are shown (default: 0.3)"
    )
    parser.add_argument("--slide", action="store_true", help="a segmentor's windows of 512x512 in place of the whole")
    parser.add_argument("--flip", action="store_true", help="a segmentor's mean with the mirrored picture")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from rmt_jax.convert import read_weights
    from rmt_jax.data import decode
    from rmt_jax.tasks import SegmentationConfig
    from rmt_jax.training.prediction import Predictor

    if options.top < 1:
        raise ValueError(f"--top={options.top}: expected 1 or more.")
    output = options.output or pathlib.Path()
    for picture in options.pictures:
        if not picture.is_file():
            raise FileNotFoundError(f"There is no picture {picture}.")
    settings = SegmentationConfig(mode="slide" if options.slide else "whole", flip=options.flip)
    scale = None if options.scale is None else tuple(options.scale)
    predictor = Predictor(read_weights(options.weights), segmentation=settings, scale=scale)
    output.mkdir(parents=True, exist_ok=True)
    for picture in options.pictures:
        image = decode(picture.read_bytes(), str(picture))
        print(f"{picture}:")
        if predictor.segments:
            _segment(predictor, image, output / picture.stem)
        elif predictor.detects:
            _detect(predictor, image, output / picture.stem, options.score)
        else:
            _classify(predictor, image, options.top)
    return 0


def _classify(predictor: "Predictor", image: Image.Image, top: int) -> None:
    probabilities = predictor.probabilities(image)
    for label in np.argsort(-probabilities, kind="stable")[:top]:
        print(f"  {100 * probabilities[label]:5.1f} %  {predictor.class_names[label]}")


def _segment(predictor: "Predictor", image: Image.Image, stem: pathlib.Path) -> None:
    from rmt_jax.data.segmentation import palette
    from rmt_jax.training.metrics import replace_file
    from rmt_jax.training.segmentation import overlay, png

    classes, colours = predictor.classes(image), palette(len(predictor.class_names))
    shares = np.bincount(classes.ravel(), minlength=len(colours)) / classes.size
    for label in np.argsort(-shares, kind="stable")[:MOST]:
        if shares[label]:
            print(f"  {100 * shares[label]:5.1f} %  {predictor.class_names[label]}")
    labels, over = (stem.with_name(f"{stem.name}_{what}.png") for what in ("labels", "overlay"))
    replace_file(labels, png(classes, colours))
    replace_file(over, png(overlay(np.asarray(image), classes, colours)))
    print(f"  {labels}, {over}")


def _detect(predictor: "Predictor", image: Image.Image, stem: pathlib.Path, score: float) -> None:
    from rmt_jax.tasks import encode_mask
    from rmt_jax.training.metrics import replace_file
    from rmt_jax.training.object_figures import draw_objects
    from rmt_jax.training.segmentation import png

    found, names = predictor.objects(image), predictor.class_names
    entries = [
        {"class": names[label], "score": float(value), "box": [round(side, 2) for side in box]}
        for label, value, box in zip(found.labels, found.scores, found.boxes.tolist(), strict=True)
    ]
    for entry, mask in zip(entries, () if found.masks is None else found.masks, strict=False):
        entry["mask"] = encode_mask(mask)
    shown = found.above(score)
    for entry in entries[: len(shown.scores)]:
        x1, y1, x2, y2 = entry["box"]
        print(f"  {100 * entry['score']:5.1f} %  {entry['class']}  {x1:.0f},{y1:.0f} .. {x2:.0f},{y2:.0f}")
    objects, over = stem.with_name(f"{stem.name}_objects.json"), stem.with_name(f"{stem.name}_overlay.png")
    replace_file(objects, (json.dumps(entries, indent=1) + "\n").encode())
    replace_file(over, png(draw_objects(np.asarray(image), shown, names)))
    print(f"  {len(shown.scores)} of {len(entries)} objects: {objects}, {over}")
