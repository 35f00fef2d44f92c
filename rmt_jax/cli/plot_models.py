"""`rmt plot decay | attention`: what models look at."""

import argparse
import pathlib
import sys

from rmt_jax.cli.plot_output import add_output, check_figure

DECAY_DESCRIPTION = """\
Draws the decay of every head of a model, which no training changes: how it is made of a factor along rows and one
along columns, its map around the middle position with the line where it is a half, and its fall with the distance.

  rmt plot decay rmt_s
  rmt plot decay rmt_l --image-size 512 --output decay.svg
"""
ATTENTION_DESCRIPTION = """\
Draws what one position of a picture attends to: beside the picture the mean of the heads, the mean of their decay
alone, which is where training starts from, and heads. Without options the middle of the picture in the last block of
every stage, with some of its heads; with --stage all heads of that stage. The maps are those of the model's own
forward pass; decomposed retention is shown as the product of its two steps. LePE is not part of it.

WEIGHTS is whatever rmt_jax.load_pretrained takes: a directory of `rmt convert`, a checkpoint of the authors, the
workdir of a training run, user/name on the Hugging Face hub. Classifiers and backbones see their evaluation's crop of
the picture, segmentors and detectors all of it.

  rmt plot attention rmt_s/ cat.jpg
  rmt plot attention rmt_s/ cat.jpg --position 320 200 --stage 3
  rmt plot attention workdir/digits four.png --stage 1 --block 0 --head 1 --output head.svg
"""


def add_parsers(plots: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add both subcommands."""
    decay = plots.add_parser(
        "decay",
        help="the decay of every head of a model",
        description=DECAY_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    decay.add_argument("model", metavar="MODEL", help="a name of `rmt models`")
    decay.add_argument("--image-size", type=int, default=224, metavar="N", help="pixels along a side (default: 224)")
    add_output(decay, "decay.png")
    decay.set_defaults(run=_run_decay)

    attention = plots.add_parser(
        "attention",
        help="what a position of a picture attends to",
        description=ATTENTION_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    attention.add_argument("weights", metavar="WEIGHTS")
    attention.add_argument("picture", metavar="PICTURE", type=pathlib.Path)
    attention.add_argument(
        "--position", type=int, nargs=2, metavar=("X", "Y"), help="pixel of the picture (default: the middle)"
    )
    attention.add_argument("--stage", type=int, metavar="N", help="1 to 4 (default: all of them)")
    attention.add_argument("--block", type=int, default=-1, metavar="N", help="from 0; -1 is the last, the default")
    attention.add_argument(
        "--image-size", type=int, metavar="N", help="pixels along a side of the crop (default: the weights' own)"
    )
    attention.add_argument("--head", type=int, nargs="+", metavar="N", help="from 0 (default: some, of one stage all)")
    add_output(attention, "attention.png")
    attention.set_defaults(run=_run_attention)


def _run_decay(options: argparse.Namespace) -> int:
    from rmt_jax.models import variant
    from rmt_jax.training.decay_sheet import draw_decay
    from rmt_jax.training.figures import save_figure

    check_figure(options.output)
    _check_size(options.image_size)
    save_figure(draw_decay(options.model, variant(options.model), (options.image_size,) * 2), options.output)
    print(options.output)
    return 0


def _check_size(size: int | None) -> None:
    if size is not None and size < 32:
        raise ValueError(f"--image-size {size}: the models take 32 pixels or more.")


def _run_attention(options: argparse.Namespace) -> int:
    from rmt_jax.convert import read_weights
    from rmt_jax.data import decode
    from rmt_jax.training.attention_sheet import check_choice, draw_attention, find_maps, view
    from rmt_jax.training.figures import save_figure

    check_figure(options.output)
    _check_size(options.image_size)
    if not options.picture.is_file():
        raise FileNotFoundError(f"There is no picture {options.picture}.")
    photograph = decode(options.picture.read_bytes(), str(options.picture))
    weights = read_weights(options.weights)
    stages = range(1, len(weights.config.depths) + 1) if options.stage is None else [options.stage]
    blocks = [(stage, options.block) for stage in stages]
    check_choice(weights.config, blocks, options.head)
    if weights.task in ("classification", "backbone") and weights.preprocessing is None:
        print("These weights do not say how their pictures were prepared: taken for ImageNet's.", file=sys.stderr)
    shown = view(weights, photograph, options.image_size)
    pixel = None if options.position is None else (options.position[0], options.position[1])
    position = shown.place(photograph, pixel)
    maps = find_maps(weights.to_model(), shown.images, position, blocks)
    asked = "the middle" if pixel is None else f"pixel {pixel}"
    title = f"{weights.name}: what {asked} of {options.picture.name} attends to"
    save_figure(draw_attention(shown, position, maps, title, options.head), options.output)
    print(options.output)
    return 0
