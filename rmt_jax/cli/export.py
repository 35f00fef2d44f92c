"""`rmt export`: models as files that other programs run."""

import argparse
import pathlib
import time
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Column, Table

from rmt_jax.cli.output import Console, add_json, say, write_json
from rmt_jax.cli.pictures import add_weights, read_given_weights

if TYPE_CHECKING:  # the other commands do not need the training
    from rmt_jax.export import Check, Program

DESCRIPTION = """\
Writes a model as a file that runs without this package: a classifier, a segmentor or a backbone, in evaluation mode.
The name says the format:

  NAME.onnx         for onnxruntime, in Python, C++, C#, Java, JavaScript and on phones
  NAME.stablehlo    for JAX (jax.export.deserialize) and other users of XLA

and NAME.onnx.json or NAME.stablehlo.json describes it: inputs and outputs, how to prepare pictures, classes, where the
weights come from. Then the file is run, by onnxruntime or in a JAX process of its own, on two photographs, and compared
with the model. WEIGHTS is whatever rmt_jax.load_pretrained takes.

  rmt export rmt_s/ rmt_s.onnx
  rmt export workdir/digits digits.onnx --pixels --int8
  rmt export RMT-T.pth rmt_t.stablehlo --batch-size 8 --dtype bfloat16 --platforms tpu cpu
  rmt export uper_s/ backbone.onnx --backbone --image-size 512 1024
"""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", summary: str) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "export",
        help=summary,
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Exit codes: 0 written and equal, 1 written but not equal, 2 refused (nothing is written).",
    )
    add_weights(parser)
    parser.add_argument("output", metavar="OUTPUT", type=pathlib.Path, help="NAME.onnx or NAME.stablehlo")
    parser.add_argument(
        "--image-size",
        type=int,
        nargs="+",
        metavar="N",
        help="one side, or height and width (default: as the weights name it; else 224, of segmentors 512)",
    )
    parser.add_argument("--batch-size", type=int, metavar="N", help="pictures in a call (default: any number)")
    parser.add_argument("--pixels", action="store_true", help="take uint8 RGB, and normalise it in the file")
    parser.add_argument("--backbone", action="store_true", help="the four maps, without the head")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="to compute in")
    parser.add_argument("--int8", action="store_true", help="of ONNX: quantise linear layers")
    parser.add_argument(
        "--platforms", nargs="+", metavar="NAME", help="of StableHLO: any of cpu, tpu, cuda (default: all)"
    )
    parser.add_argument("--force", action="store_true", help="replace OUTPUT")
    add_json(parser, "what was compared")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from rmt_jax.export import (
        ONNX,
        PLATFORMS,
        Settings,
        bound,
        check_destination,
        check_file,
        write_onnx,
        write_stablehlo,
    )

    settings = Settings(_size(options.image_size), options.batch_size, options.dtype, options.pixels, options.backbone)
    check_destination(options.output, settings, int8=options.int8, platforms=options.platforms, force=options.force)
    started = time.monotonic()
    weights = read_given_weights(options)
    if options.output.suffix == ONNX:
        program = write_onnx(weights, settings, options.output, int8=options.int8)
    else:
        program = write_stablehlo(weights, settings, options.output, options.platforms or PLATFORMS)
    _say_written(options.output, program, time.monotonic() - started)
    limit = bound(settings, int8=options.int8)
    runs_here = options.platforms is None or "cpu" in options.platforms
    checks = check_file(options.output, program) if runs_here else []
    within = all(check.difference <= limit for check in checks)
    if runs_here:
        _print(checks, limit, within=within)
    else:
        say("Not run, and not compared: that needs the CPU among --platforms.")
    write_json(options.json, _json(options, program, checks, limit, within=within))
    return 0 if within else 1


def _size(words: list[int] | None) -> tuple[int, int] | None:
    if words is None:
        return None
    if len(words) > 2:
        raise ValueError(f"--image-size {' '.join(map(str, words))}: give one side, or height and width.")
    return words[0], words[-1]


def _say_written(output: pathlib.Path, program: "Program", seconds: float) -> None:
    from rmt_jax.export.files import description_file

    described = program.describe()
    arrays = [described["input"], *described["outputs"]]
    say(f"{output}: {described['description']}, {output.stat().st_size / 1e6:,.1f} MB, in {seconds:.0f} s")
    for what, array in zip(["takes", *["gives"] * (len(arrays) - 1)], arrays, strict=True):
        say(f"  {what} {array['name']} {array['type']} [{' '.join(map(str, array['shape']))}]: {array['meaning']}")
    say(f"  described in {description_file(output)}")


def _print(checks: "list[Check]", limit: float, *, within: bool) -> None:
    header = ("pictures", "output", "largest difference", "same class")
    table = Table(*(Column(name, no_wrap=True) for name in header), box=box.SIMPLE_HEAD)
    for check in checks:
        same = "" if check.same_class is None else f"{100 * check.same_class:.2f} %"
        table.add_row(str(check.batch), check.output, f"{check.difference:.1e}", same)
    Console().print(table)
    verdict = "Equal" if within else "NOT EQUAL"
    say(f"{verdict} to the model in float32 within {limit:g} of the largest magnitude.")


def _json(
    options: argparse.Namespace, program: "Program", checks: "list[Check]", limit: float, *, within: bool
) -> dict[str, Any]:
    return {
        "file": str(options.output),
        "bytes": options.output.stat().st_size,
        "input": program.describe()["input"],
        "dtype": program.settings.dtype,
        "int8": options.int8,
        "checks": [check._asdict() for check in checks],
        "bound": limit,
        "equal": within if checks else None,
    }
