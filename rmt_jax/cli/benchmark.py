"""`rmt benchmark`: what this machine achieves."""

import argparse

from rmt_jax.cli import benchmark_input, benchmark_model


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    parser = commands.add_parser("benchmark", help="what this machine achieves")
    measures = parser.add_subparsers(title="what to measure", required=True)
    benchmark_model.add_parsers(measures)
    benchmark_input.add_parser(measures)
