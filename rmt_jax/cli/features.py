"""`rmt features`: what weights make of pictures, as arrays in a file."""

import argparse
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rmt_jax.cli.output import add_quiet, check_output, counting, say
from rmt_jax.cli.pictures import EXIT_CODES, WEIGHTS_HELP, Pictures, add_pictures, read_given_weights

if TYPE_CHECKING:
    from PIL import Image

DESCRIPTION = f"""\
Writes the features of pictures, for nearest neighbours, linear probes, clustering. FILE.npz holds

  names      of the pictures, [pictures]
  features   float32 [pictures channels]: of a classifier the input of its head, of others the mean of the last map

or with --maps, in place of the features, the maps of the stages that are named:

  stage1     float32 [pictures height width channels], at a stride of 4; stage2, stage3, stage4 of 8, 16, 32

Pictures are prepared as for `rmt predict`. All features are kept in memory until they are written.

{WEIGHTS_HELP}
  rmt features rmt_s/ photos/ --output photos.npz
  rmt features workdir/flowers 'flowers/*/*.jpg' --output flowers.npz --batch-size 64 --dtype bfloat16
  rmt features rmt_s/ cat.jpg --output cat.npz --maps 1 4

  >>> file = numpy.load("photos.npz"); file["names"], file["features"]
"""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", summary: str) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "features",
        help=summary,
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EXIT_CODES,
    )
    add_pictures(parser)
    parser.add_argument("--output", type=pathlib.Path, required=True, metavar="FILE", help="a .npz to write")
    parser.add_argument(
        "--maps",
        type=_stage,
        nargs="+",
        default=[],
        metavar="STAGE",
        help="some of 1 2 3 4: the maps of these stages in place of pooled features",
    )
    add_quiet(parser)
    parser.set_defaults(run=_run)


def _stage(word: str) -> int:
    if word not in ("1", "2", "3", "4"):
        raise argparse.ArgumentTypeError(f"expected stages from 1 to 4, got {word!r}; pictures come before --maps")
    return int(word)


def _run(options: argparse.Namespace) -> int:
    if options.output.suffix != ".npz":
        raise ValueError(f"--output={options.output}: expected a name that ends in .npz.")
    check_output(options.output, "--output")
    pictures = Pictures(options)

    import numpy as np

    from rmt_jax.training.features import FeatureExtractor
    from rmt_jax.training.metrics import replacement

    weights = read_given_weights(options)
    extractor = FeatureExtractor(weights, dtype=options.dtype, stages=options.maps)
    names: list[str] = []
    with counting("extracting", pictures.total, quiet=options.quiet) as advance:

        def images() -> "Iterator[Image.Image]":
            for picture in pictures.read(advance):
                names.append(picture.name)
                yield picture.image
                advance(1)

        arrays = extractor(images(), batch_size=min(options.batch_size, pictures.total))
    content: dict[str, Any] = {"names": np.array(names), **arrays}
    with replacement(options.output) as file:
        np.savez(file, **content)
    for name, array in arrays.items():
        say(f"{options.output}: {name} {list(array.shape)} of {weights.describe()}")
    return pictures.finish(len(names))
