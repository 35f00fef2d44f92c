"""`rmt predict`: what weights say of pictures."""

import argparse
import csv
import dataclasses
import io
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rmt_jax.cli.output import Console, Destination, add_json, add_quiet, counting, say, write_json
from rmt_jax.cli.pictures import EXIT_CODES, WEIGHTS_HELP, Pictures, add_pictures, read_given_weights

if TYPE_CHECKING:  # what is heavy is imported where it is used
    from rmt_jax.cli.predict_results import Result
    from rmt_jax.training.prediction import Predictor

DESCRIPTION = f"""\
Says what is on pictures. Of a classifier the likeliest classes with their probabilities, and with --save DIR:

  PICTURE_classes.png   the picture with these beside it

Of a segmentor the classes that cover most of a picture, and into --save (or here):

  PICTURE_labels.png    the class of every pixel, an indexed PNG whose values are the classes
  PICTURE_overlay.png   the same in colours over the picture

Of a detector the objects with their scores, and into --save (or here):

  PICTURE_objects.json  all of them: class, score, box (x1, y1, x2, y2), mask as COCO's run lengths
  PICTURE_overlay.png   those above --score over the picture

{WEIGHTS_HELP}
  rmt predict rmt_s/ cat.jpg
  rmt predict rmt_s/ photos/ 'more/*.png' --json photos.json
  rmt predict rmt_s/ photos/ --top 1 --csv - | cut -d, -f1,4
  rmt predict workdir/ade20k street.jpg garden.jpg --save predictions
  rmt predict workdir/coco street.mp4 --every 10 --score 0.5 --save street

A workdir's segmentor or detector predicts as its run evaluates: --scale, --slide and --flip are for others.
"""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", summary: str) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "predict",
        help=summary,
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EXIT_CODES,
    )
    add_pictures(parser)
    parser.add_argument("--top", type=int, default=5, metavar="N", help="classes of a classifier (default: 5)")
    parser.add_argument(
        "--save", type=pathlib.Path, metavar="DIR", help="for the pictures with what is found drawn into them"
    )
    parser.add_argument(
        "--scale",
        type=int,
        nargs=2,
        metavar=("LONG", "SHORT"),
        help="sides (default: those that the weights name, or 2048 512, of a detector 1333 800)",
    )
    parser.add_argument(
        "--score", type=float, default=0.3, metavar="S", help="of objects that are shown (default: 0.3)"
    )
    parser.add_argument(
        "--slide",
        action=argparse.BooleanOptionalAction,
        help="a segmentor's windows of 512x512 in place of the whole, or not (default: as the run)",
    )
    parser.add_argument(
        "--flip",
        action=argparse.BooleanOptionalAction,
        help="a segmentor's mean with the mirrored picture, or not (default: as the run)",
    )
    add_json(parser, "all results")
    parser.add_argument(
        "--csv", type=Destination, metavar="FILE", help="write all results as a table; - to standard output"
    )
    add_quiet(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    if options.top < 1:
        raise ValueError(f"--top={options.top}: expected 1 or more.")
    if options.scale is not None and min(options.scale) < 1:
        raise ValueError(f"--scale {' '.join(map(str, options.scale))}: expected two sides of 1 or more.")
    if options.save is not None and options.save.exists() and not options.save.is_dir():
        raise ValueError(f"--save={options.save}: this is a file, and a directory is needed.")
    pictures = Pictures(options)
    predictor = _predictor(options)

    from rmt_jax.cli.predict_results import predict

    table = Console().is_terminal and not (predictor.segments or predictor.detects)
    results: list[Result] = []
    with counting("predicting", pictures.total, quiet=options.quiet) as advance:
        for result in predict(predictor, pictures.read(advance), options, size=min(options.batch_size, pictures.total)):
            results.append(result)
            advance(1)
            if not table:
                say(f"{result.name}:")
                for line in result.lines:
                    say(f"  {line}")
    if table:
        _print_table(results)
    _write(options, predictor, results, pictures)
    return pictures.finish(len(results))


def _predictor(options: argparse.Namespace) -> "Predictor":
    from rmt_jax.training.prediction import Predictor, run_settings

    weights = read_given_weights(options)
    settings = run_settings(options.source, weights)
    segmentation = settings.segmentation
    if options.slide is not None:
        segmentation = dataclasses.replace(segmentation, mode="slide" if options.slide else "whole")
    if options.flip is not None:
        segmentation = dataclasses.replace(segmentation, flip=options.flip)
    scale = None if options.scale is None else tuple(options.scale)
    return Predictor(weights, dtype=options.dtype, segmentation=segmentation, detection=settings.detection, scale=scale)


def _print_table(results: "Sequence[Result]") -> None:
    """Of a classifier: a section a picture."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table("picture", "class", box=box.SIMPLE_HEAD)
    table.add_column("probability", justify="right")
    for result in results:
        for row, entry in enumerate(result.entries):
            style = "" if row else "bold"
            cells = ("" if row else result.name, entry["class"], f"{100 * entry['probability']:.1f} %")
            table.add_row(*(Text(cell, style) for cell in cells))
        table.add_section()
    Console().print(table)


def _write(
    options: argparse.Namespace, predictor: "Predictor", results: "Sequence[Result]", pictures: Pictures
) -> None:
    from rmt_jax.cli.predict_results import COLUMNS

    weights = predictor.weights
    what = "objects" if predictor.detects else "classes"
    content = {
        "weights": options.source,
        "model": weights.name,
        "task": weights.task,
        "head": weights.head,
        "predictions": [{"picture": result.name, what: result.entries} for result in results],
        "skipped": [{"picture": record.name, "problem": record.problem} for record in pictures.skipped],
    }
    write_json(options.json, content)
    if options.csv is not None:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS[weights.task])
        writer.writerows((result.name, *row) for result in results for row in result.rows)
        options.csv.write(text.getvalue())
