"""What all of `rmt plot` share: the file that a figure is written to."""

import argparse
import pathlib


def add_output(parser: argparse.ArgumentParser, default: str) -> None:
    """Add --output."""
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        default=pathlib.Path(default),
        metavar="FILE",
        help=f"PNG, SVG or PDF, as its name ends (default: {default})",
    )


def check_figure(path: pathlib.Path) -> None:
    """Raise ValueError where no figure can be written there."""
    from rmt_jax.cli.output import check_output
    from rmt_jax.training.figures import FORMATS

    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"--output={path}: expected a name that ends in {', '.join(FORMATS)}.")
    check_output(path, "--output")
