"""`rmt doctor`: is this machine, this data set, this workdir sound?"""

import argparse
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rmt_jax.cli.output import add_json, write_json

if TYPE_CHECKING:  # the other commands do not need the training
    from rmt_jax.training.doctor import Finding

DESCRIPTION = """\
Checks versions, devices, memory and disk; with --config the data set and whether the recipe can start here; with
--workdir what a run has left there, every checkpoint read. Then trains five steps in a temporary folder, saves and
restores. Each finding is a line "ok", "warning" or "problem", with how to mend it. Writes nothing into the workdir.

  rmt doctor
  rmt doctor --config configs/rmt_s.py --config.data.dir=/data --workdir /shared/rmt_s

Exit code 1 when there is a problem.
"""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", summary: str) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "doctor",
        help=summary,
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="--config.KEY=VALUE changes a value of the recipe.",
    )
    parser.add_argument("--config", metavar="FILE", help="a recipe, such as configs/rmt_s.py")
    parser.add_argument("--workdir", type=pathlib.Path, metavar="DIR", help="of a run, there or to come")
    parser.add_argument("--no-smoke", action="store_true", help="leave out the five steps")
    add_json(parser, "the findings")
    parser.set_defaults(run=_run, config_words=[])


def _run(options: argparse.Namespace) -> int:
    if options.config_words and options.config is None:
        raise ValueError(f"{options.config_words[0]}: give --config FILE with it.")
    findings = []
    for finding in _findings(options):
        print(finding, flush=True)
        findings.append(finding)
    write_json(options.json, [finding._asdict() for finding in findings])
    return int(any(finding.level == "problem" for finding in findings))


def _findings(options: argparse.Namespace) -> "Iterator[Finding]":
    from rmt_jax.training import doctor
    from rmt_jax.training.command_line import load_config
    from rmt_jax.training.config import parse
    from rmt_jax.training.smoke import smoke_run

    config = None if options.config is None else parse(load_config(options.config, options.config_words))
    yield from doctor.check_versions()
    computes = yield from doctor.check_devices()
    yield from doctor.check_memory()
    if config is not None:
        yield from doctor.check_data(config)
    if config is not None and computes:
        yield from doctor.check_recipe(config, options.workdir)
    elif options.workdir is not None:
        yield from doctor.check_disk(options.workdir)
    if options.workdir is not None:
        yield from doctor.check_workdir(options.workdir, config)
    if computes and not options.no_smoke:
        yield from smoke_run(config)
