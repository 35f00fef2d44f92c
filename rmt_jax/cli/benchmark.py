"""`rmt benchmark`: what this machine achieves."""

import argparse

from rmt_jax.cli import benchmark_input, benchmark_model

DESCRIPTION = """\
Measures speed on this machine, or as a compiler for TPUs sees it.

  rmt benchmark model rmt_s --batch-size 8
  rmt benchmark train --config configs/rmt_s.py --batch-size 64
  rmt benchmark input --config configs/rmt_s.py --synthetic
"""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", summary: str) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "benchmark", help=summary, description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    measures = parser.add_subparsers(title="what to measure", required=True, metavar="MEASURE")
    benchmark_model.add_parsers(measures)
    benchmark_input.add_parser(measures)
