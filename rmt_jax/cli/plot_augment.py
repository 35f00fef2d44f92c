"""`rmt plot augment`: what a recipe does with a photograph."""

import argparse
import pathlib

from rmt_jax.cli.plot_output import add_output, check_figure

DESCRIPTION = """\
Draws what a recipe does with a photograph: the evaluation view, training views as they leave the host, what the model
sees after normalising, erasing and mixing on the device, and every operation of RandAugment at the recipe's magnitude.

  rmt plot augment --config configs/rmt_s.py
  rmt plot augment --config configs/rmt_s.py --image cat.jpg --output weaker.png \\
    --config.data.augment.rand_augment.magnitude=5
"""


def add_parser(plots: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    augment = plots.add_parser(
        "augment",
        help="a photograph under a recipe's augmentation",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="--config.KEY=VALUE changes a value of the recipe.",
    )
    augment.add_argument("--config", required=True, metavar="FILE", help="a recipe, such as configs/rmt_s.py")
    augment.add_argument("--image", type=pathlib.Path, metavar="FILE", help="photograph (default: scikit-learn's)")
    augment.add_argument("--seed", type=int, default=0, metavar="N", help="of the draws (default: 0)")
    add_output(augment, "augment.png")
    augment.set_defaults(run=_run_augment, config_words=[])


def _run_augment(options: argparse.Namespace) -> int:
    # Imported here: the other commands do not need the training.
    from rmt_jax.data import decode
    from rmt_jax.training.augment_sheet import draw_augment_sheet, sample_photographs
    from rmt_jax.training.command_line import load_config
    from rmt_jax.training.config import parse

    check_figure(options.output)
    if not 0 <= options.seed < 2**32:
        raise ValueError(f"--seed={options.seed}: expected 0 <= seed < 2**32.")
    config = parse(load_config(options.config, options.config_words))
    photograph, partner = sample_photographs()
    if options.image is not None:
        photograph = decode(options.image.read_bytes(), str(options.image))
    draw_augment_sheet(config, photograph, partner, options.output, seed=options.seed, title=options.config)
    print(options.output)
    return 0
