"""`rmt plot`: pictures of recipes, models, runs and measurements."""

import argparse

from rmt_jax.cli import plot_augment, plot_models, plot_results

DESCRIPTION = """\
Figures as PNG, SVG or PDF.

  rmt plot curves workdir/digits
  rmt plot attention rmt_s/ cat.jpg --output attention.svg
"""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", summary: str) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "plot", help=summary, description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    plots = parser.add_subparsers(title="what to draw", required=True, metavar="WHAT")
    plot_results.add_parsers(plots)
    plot_models.add_parsers(plots)
    plot_augment.add_parser(plots)
