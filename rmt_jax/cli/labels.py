"""`rmt labels`: label maps for token labelling, packed, unpacked, checked and made."""

import argparse
import contextlib
import dataclasses
import pathlib
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rmt_jax.convert import label_files, read_weights
from rmt_jax.data import DataConfig, ImageSource, open_source
from rmt_jax.data.label_maps import LabelMaps
from rmt_jax.data.label_writer import Coverage, coverage

DESCRIPTION = """\
Label maps for token labelling: for every training picture the best classes in each cell of an 18x18 grid.

  rmt labels pack label_top5_train_nfnet labels.array_record       published maps, one file a picture, to one file
  rmt labels unpack labels.array_record label_top5_train_nfnet     and back, bit for bit
  rmt labels check labels.array_record --config configs/rmt_s.py   is there a map for every training picture?
  rmt labels make labels.array_record --teacher rmt_l --config configs/rmt_s.py    maps of a model's own making
"""

LINE_SECONDS = 60.0  # between lines about the progress where there is no terminal


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "labels",
        help="label maps for token labelling",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Exit codes: 0 done, 1 pictures without a map, 2 refused (nothing is written).",
    )
    actions = parser.add_subparsers(title="actions", required=True)

    pack = actions.add_parser("pack", help="a tree of .pt files to one file")
    pack.add_argument("tree", type=pathlib.Path, help="folder with CLASS/PICTURE.pt")
    pack.add_argument("file", type=pathlib.Path, help="the file to write")
    pack.add_argument("--force", action="store_true", help="replace the file")
    _add_data(pack, "then check that every picture of this data set has a map: ")
    pack.set_defaults(run=_pack)

    unpack = actions.add_parser("unpack", help="one file to a tree of .pt files")
    unpack.add_argument("file", type=pathlib.Path, help="what rmt labels wrote")
    unpack.add_argument("tree", type=pathlib.Path, help="folder to write, new or empty")
    unpack.set_defaults(run=_unpack)

    check = actions.add_parser("check", help="whether every training picture has a map")
    check.add_argument("file", type=pathlib.Path, help="what rmt labels wrote")
    _add_data(check)
    check.set_defaults(run=_check)

    make = actions.add_parser("make", help="make maps with a model")
    make.add_argument("file", type=pathlib.Path, help="the file to write; interrupted work goes on from FILE.parts")
    make.add_argument("--teacher", required=True, help="model directory, checkpoint, workdir, or user/name on the hub")
    make.add_argument("--weights", choices=("ema", "raw"), help="which of its weights (default: the moving average)")
    make.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="type to compute in")
    make.add_argument("--batch-size", type=int, default=64, help="pictures at once, over all devices (default: 64)")
    make.add_argument("--image-size", type=int, default=576, help="pixels; 18x18 cells need 576, the default")
    make.add_argument("--force", action="store_true", help="replace the file")
    _add_data(make)
    make.set_defaults(run=_make)


def _add_data(parser: argparse.ArgumentParser, purpose: str = "") -> None:
    parser.add_argument("--config", help=f"{purpose}a recipe, such as configs/rmt_s.py, for its data set")
    parser.add_argument("--data-name", metavar="NAME", help='the data set: "folder", "tar" or a TFDS name')
    parser.add_argument("--data-dir", metavar="DIR", help="where it is")
    parser.add_argument("--split", help="which split (default: the training split)")


def _pack(options: argparse.Namespace) -> int:
    _check_file(options.file, force=options.force)
    data = _data(options) if options.config or options.data_name else None
    tree = label_files.find_maps(options.tree)
    if tree.others:
        print(f"{tree.others:,} files in {options.tree} are no {label_files.ENDING} files and are not read.")
    with _progress("packing", len(tree.maps)) as advance:
        label_files.pack(options.tree, tree.maps, options.file, advance=advance)
    maps = LabelMaps(options.file)
    print(f"{options.file}: {len(maps):,} label maps, {options.file.stat().st_size / 1e6:,.1f} MB")
    return 0 if data is None else _report(maps, data)


def _unpack(options: argparse.Namespace) -> int:
    maps = LabelMaps(options.file)
    with _progress("unpacking", len(maps)) as advance:
        label_files.unpack(maps, options.tree, advance=advance)
    print(f"{options.tree}: {len(maps):,} label maps")
    return 0


def _check(options: argparse.Namespace) -> int:
    return _report(LabelMaps(options.file), _data(options))


def _make(options: argparse.Namespace) -> int:
    # Imported here: the other actions need neither the training nor what it is built on.
    from rmt_jax.training.label_maker import make_maps, make_teacher

    _check_file(options.file, force=options.force)
    data = _data(options)
    source = open_source(data, data.train_split)
    teacher = make_teacher(read_weights(options.teacher, weights=options.weights), source, options.dtype)
    print(f"{teacher.provenance['source']} labels {len(source):,} pictures of {source.name}")
    with _progress("labelling", len(source)) as advance:
        made = make_maps(
            teacher,
            source,
            options.file,
            batch_size=options.batch_size,
            image_size=options.image_size,
            threads=max(1, data.num_threads),
            advance=advance,
        )
    print(f"{options.file}: {made.maps:,} label maps, {options.file.stat().st_size / 1e6:,.1f} MB")
    if made.unreadable:
        print(f"{len(made.unreadable):,} pictures cannot be decoded and have no map: {_some(made.unreadable)}")
    return 1 if made.unreadable else 0


def _check_file(path: pathlib.Path, *, force: bool) -> None:
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ValueError(f"{path}: give the name of a file in a directory that exists.")
    if path.exists() and not force:
        raise FileExistsError(f"{path} exists: give another name, or --force to replace it.")


def _data(options: argparse.Namespace) -> DataConfig:
    """The data set that is meant; `train_split` is the split."""
    from rmt_jax.training.command_line import load_config
    from rmt_jax.training.config import parse

    if options.config is None and options.data_name is None:
        raise ValueError("Which data set? Give --config RECIPE, or --data-name NAME and --data-dir DIR.")
    values = load_config(options.config) if options.config else {}
    given = {"name": options.data_name, "dir": options.data_dir}
    given = {key: value for key, value in given.items() if value is not None}
    data = parse(values | {"data": dict(values.get("data", {})) | given}).data
    return data if options.split is None else dataclasses.replace(data, train_split=options.split)


def _report(maps: LabelMaps, data: DataConfig) -> int:
    """Print which pictures have maps; returns the exit code."""
    source = open_source(data, data.train_split)
    with _progress("checking", len(source)) as advance:
        found = coverage(maps, _picture_ids(source), advance)
    print(_coverage_text(found, source.name))
    foreign = maps.num_classes > source.num_classes
    if foreign:
        print(f"The maps name the class {maps.num_classes - 1}, but {source.name} has {source.num_classes} classes.")
    return 1 if found.missing or foreign else 0


def _picture_ids(source: ImageSource) -> Iterator[str]:
    return map(source.id, range(len(source)))


def _coverage_text(found: Coverage, name: str) -> str:
    lines = [f"{name}: {found.pictures - found.missing:,} of {found.pictures:,} pictures have a label map."]
    if found.missing:
        lines.append(f"{found.missing:,} have none: {_some(found.first_missing, found.missing)}")
    if found.surplus:
        lines.append(f"{found.surplus:,} maps are of other pictures: {_some(found.first_surplus, found.surplus)}")
    return "\n".join(lines)


def _some(names: list[str], count: int | None = None, limit: int = 5) -> str:
    """The first few, and dots where there are more."""
    return ", ".join(names[:limit]) + (", ..." if max(len(names), count or 0) > limit else "")


@contextlib.contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yields what to call with the number just done: a bar on a terminal, now and then a line elsewhere."""
    console = Console(stderr=True)
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(what, total=total)
            yield lambda count: bar.advance(task, count)
        return
    done, printed = 0, time.monotonic()

    def advance(count: int) -> None:
        nonlocal done, printed
        done += count
        if time.monotonic() - printed >= LINE_SECONDS:
            printed = time.monotonic()
            print(f"{what}: {done:,} of {total:,}", file=sys.stderr, flush=True)

    yield advance
