"""`rmt convert`: PyTorch checkpoints to ours and back, with proof."""

import argparse
import pathlib
import resource
import sys
import time
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from rmt_jax.cli.output import Console, add_json, write_json

if TYPE_CHECKING:  # what is heavy is imported where it is used
    from rmt_jax.convert import Weights

TERMINAL = "-"  # where --report without a file goes
AUX_TAPS = ("features", "proj", "norm", "activation")  # rmt_jax.models.variants.AuxTap

DESCRIPTION = """\
Converts the authors' PyTorch checkpoints to rmt_jax and back: classifiers, segmentors, detectors, backbones. The model
is recognised from keys and shapes.

  rmt convert --list RMT-S.pth              what is in a file
  rmt convert RMT-S.pth rmt_s               to a model directory, for rmt_jax.load_pretrained and init_from
  rmt convert RMT-S.pth rmt_s.safetensors   to one file, with upstream's names
  rmt convert rmt_s RMT-S.pth               and back: upstream loads it with strict=True
  rmt convert workdir/rmt_s RMT-S.pth       the latest checkpoint of a training run
"""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", summary: str) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "convert",
        help=summary,
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Exit codes: 0 converted, 1 --verify found a difference, 2 refused (nothing is written).",
    )
    parser.add_argument(
        "source", metavar="WEIGHTS", help=".pth, .pt, .safetensors, model directory, workdir, or user/name on the hub"
    )
    parser.add_argument(
        "destination",
        nargs="?",
        type=pathlib.Path,
        metavar="DESTINATION",
        help="NAME.safetensors, NAME.pth, or a model directory",
    )
    parser.add_argument("--list", action="store_true", help="only describe the source")
    parser.add_argument(
        "--weights", choices=("ema", "raw"), help="which weights (default: the moving average where there is one)"
    )
    parser.add_argument("--entry", metavar="NAME", help="which entry of the file, where several could be meant")
    parser.add_argument("--model", metavar="MODEL", help="which of `rmt models`, where it is not recognised")
    parser.add_argument("--aux-tap", choices=AUX_TAPS, help="where an auxiliary head as wide as the projection reads")
    parser.add_argument(
        "--report",
        nargs="?",
        const=TERMINAL,
        metavar="FILE",
        help="a table of every tensor: printed, or written to FILE as CSV",
    )
    parser.add_argument(
        "--verify", action="store_true", help="compare a picture's outputs before, after and, if there is, in PyTorch"
    )
    parser.add_argument("--force", action="store_true", help="replace the destination")
    add_json(parser, "what is printed")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from rmt_jax.convert.describe import describe_source
    from rmt_jax.convert.sources import locate

    if options.list:
        if options.destination is not None:
            raise ValueError("--list only describes the source: leave the destination out.")
        path = locate(options.source)
        kind, rows = describe_source(path)
        _print_rows(f"{options.source}: {kind}, {_size(path)}", rows)
        write_json(options.json, {"source": options.source, "kind": kind, "entries": rows})
        return 0
    if options.destination is None:
        raise ValueError("a destination is needed: a directory, NAME.safetensors or NAME.pth (or --list).")
    return _convert(options)


def _convert(options: argparse.Namespace) -> int:
    from rmt_jax.convert import read_weights, write_weights
    from rmt_jax.convert.describe import describe_weights
    from rmt_jax.convert.destinations import check_destination

    started, source = time.monotonic(), pathlib.Path(options.source)
    destination: pathlib.Path = options.destination
    check_destination(destination, source, force=options.force)
    if options.report not in (None, TERMINAL):
        _check_report(pathlib.Path(options.report), force=options.force)
    weights = read_weights(
        options.source, weights=options.weights, entry=options.entry, model=options.model, aux_tap=options.aux_tap
    )
    rows = {"sha256": weights.provenance["sha256"]}
    rows |= describe_weights(weights, chosen=options.weights is not None or options.entry is not None)
    write_weights(weights, destination, force=options.force)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    rows["written"] = (
        f"{destination}, {_size(destination)}, in {time.monotonic() - started:.1f} s, peak memory {peak / 1e6:,.0f} MB"
    )
    _print_rows(f"{options.source} -> {destination}", rows)
    if options.report is not None:
        _report(weights, destination, options.report)
    verification = _verify(weights, destination) if options.verify else None
    content = {"source": options.source, "destination": str(destination), **weights.card()}
    write_json(options.json, content | {"verification": verification})
    return 0 if verification is None or verification["equal"] else 1


def _check_report(path: pathlib.Path, *, force: bool) -> None:
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ValueError(f"--report={path}: give the name of a file in a directory that exists.")
    if path.exists() and not force:
        raise FileExistsError(f"--report={path} exists: give another name, or --force to replace it.")


def _report(weights: "Weights", destination: pathlib.Path, where: str) -> None:
    from rmt_jax.convert.destinations import is_torch_layout
    from rmt_jax.convert.report import report_csv, report_rows, report_text

    rows = report_rows(weights, to_torch=is_torch_layout(destination))
    if where == TERMINAL:
        print(report_text(rows))
        return
    pathlib.Path(where).write_text(report_csv(rows), encoding="utf-8")
    print(f"Table of every tensor: {where}")


def _verify(weights: "Weights", destination: pathlib.Path) -> dict[str, Any]:
    """Print what the same picture gives before and after; returns how far apart, and whether that is equal."""
    from rmt_jax.convert import read_weights, verify

    images = verify.sample_images()
    before = verify.outputs(weights, images)
    after = verify.outputs(read_weights(destination), images)
    rows = {f"{name}, before": words for name, words in verify.statistics(before).items()}
    rows |= {f"{name}, after": words for name, words in verify.statistics(after).items()}
    errors = {"before and after": verify.relative_error(after, before)}
    try:
        reference = verify.reference_outputs(weights, images)
    except (ImportError, NotImplementedError) as error:
        rows["PyTorch"] = f"not compared: {error}"
    else:
        errors["after and PyTorch"] = verify.relative_error(after, reference)
        default = verify.relative_error(verify.outputs(weights, images, precision=None), reference)
        rows["default precision"] = f"this platform's is {default:.1e} from PyTorch"
    within = all(distance <= verify.TOLERANCE for distance in errors.values())
    for name, distance in errors.items():
        rows[name] = "identical" if distance == 0 else f"largest difference {distance:.1e} of the largest magnitude"
    rows["result"] = f"{'equal' if within else 'NOT EQUAL'} within {verify.TOLERANCE:g}"
    _print_rows("Verified with float32, highest matmul precision, 224x224 normal noise", rows)
    return {"differences": errors, "tolerance": verify.TOLERANCE, "equal": within}


def _print_rows(title: str, rows: dict[str, str]) -> None:
    console = Console()
    console.print(Text(title, style="bold"), soft_wrap=True)
    table = Table(show_header=False, box=box.SIMPLE)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(Text(name), Text(value))
    console.print(table)


def _size(path: pathlib.Path) -> str:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return f"{sum(file.stat().st_size for file in files) / 1e6:,.1f} MB"
