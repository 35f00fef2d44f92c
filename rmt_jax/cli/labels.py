"""`rmt labels`: label maps for token labelling, packed, unpacked, checked and made."""

import argparse
import dataclasses
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rmt_jax.cli.output import add_json, add_quiet, counting, say, write_json

if TYPE_CHECKING:  # what is heavy is imported where it is used
    from rmt_jax.data import DataConfig, ImageSource
    from rmt_jax.data.label_maps import LabelMaps
    from rmt_jax.data.label_writer import Coverage

DESCRIPTION = """\
Label maps for token labelling: for every training picture the best classes in each cell of an 18x18 grid.

  rmt labels pack label_top5_train_nfnet labels.array_record       published maps, one file a picture, to one file
  rmt labels unpack labels.array_record label_top5_train_nfnet     and back, bit for bit
  rmt labels check labels.array_record --config configs/rmt_s.py   is there a map for every training picture?
  rmt labels make labels.array_record --teacher rmt_l --config configs/rmt_s.py    maps of a model's own making
"""

ACTIONS = {  # with their examples
    "pack": ("a tree of .pt files to one file", "rmt labels pack label_top5_train_nfnet labels.array_record"),
    "unpack": ("one file to a tree of .pt files", "rmt labels unpack labels.array_record label_top5_train_nfnet"),
    "check": (
        "whether every training picture has a map",
        "rmt labels check labels.array_record --config configs/rmt_s.py",
    ),
    "make": (
        "make maps with a model",
        "rmt labels make labels.array_record --teacher rmt_l --config configs/rmt_s.py",
    ),
}


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", summary: str) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "labels",
        help=summary,
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Exit codes: 0 done, 1 pictures without a map, 2 refused (nothing is written).",
    )
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION")
    pack, unpack, check, make = (_add_action(actions, name) for name in ACTIONS)

    pack.add_argument("tree", type=pathlib.Path, metavar="FOLDER", help="with CLASS/PICTURE.pt")
    pack.add_argument("file", type=pathlib.Path, metavar="FILE", help="to write")
    pack.add_argument("--force", action="store_true", help="replace the file")
    _add_data(pack, "then check that every picture of this data set has a map: ")
    pack.set_defaults(run=_pack)

    unpack.add_argument("file", type=pathlib.Path, metavar="FILE", help="what rmt labels wrote")
    unpack.add_argument("tree", type=pathlib.Path, metavar="FOLDER", help="to write, new or empty")
    unpack.set_defaults(run=_unpack)

    check.add_argument("file", type=pathlib.Path, metavar="FILE", help="what rmt labels wrote")
    _add_data(check)
    add_json(check, "what is found")
    check.set_defaults(run=_check)

    make.add_argument(
        "file", type=pathlib.Path, metavar="FILE", help="to write; interrupted work goes on from FILE.parts"
    )
    make.add_argument(
        "--teacher",
        required=True,
        metavar="WEIGHTS",
        help="model directory, checkpoint, workdir, or user/name on the hub",
    )
    make.add_argument("--weights", choices=("ema", "raw"), help="which of its weights (default: the moving average)")
    make.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="to compute in")
    make.add_argument(
        "--batch-size", type=int, default=64, metavar="N", help="pictures, over all devices (default: 64)"
    )
    make.add_argument(
        "--image-size",
        type=int,
        default=576,
        metavar="N",
        help="pixels along a side (default: 576, for 18x18 cells)",
    )
    make.add_argument("--force", action="store_true", help="replace the file")
    _add_data(make)
    make.set_defaults(run=_make)


def _add_action(actions: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str) -> argparse.ArgumentParser:
    summary, example = ACTIONS[name]
    parser = actions.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.\n\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_quiet(parser)
    return parser


def _add_data(parser: argparse.ArgumentParser, purpose: str = "") -> None:
    parser.add_argument(
        "--config", metavar="FILE", help=f"{purpose}a recipe, such as configs/rmt_s.py, for its data set"
    )
    parser.add_argument("--data-name", metavar="NAME", help='the data set: "folder", "tar" or a TFDS name')
    parser.add_argument("--data-dir", metavar="DIR", help="where it is")
    parser.add_argument("--split", metavar="NAME", help="which split (default: the training split)")
    parser.epilog = "--config.KEY=VALUE changes a value of the recipe."
    parser.set_defaults(config_words=[])


def _pack(options: argparse.Namespace) -> int:
    from rmt_jax.convert import label_files
    from rmt_jax.data.label_maps import LabelMaps

    _check_file(options.file, force=options.force)
    data = _data(options) if options.config or options.data_name or options.config_words else None
    tree = label_files.find_maps(options.tree)
    if tree.others:
        say(f"{tree.others:,} files in {options.tree} are no {label_files.ENDING} files and are not read.", stderr=True)
    with counting("packing", len(tree.maps), quiet=options.quiet) as advance:
        label_files.pack(options.tree, tree.maps, options.file, advance=advance)
    maps = LabelMaps(options.file)
    print(f"{options.file}: {len(maps):,} label maps, {options.file.stat().st_size / 1e6:,.1f} MB")
    return 0 if data is None else _report(maps, data, options)[0]


def _unpack(options: argparse.Namespace) -> int:
    from rmt_jax.convert import label_files
    from rmt_jax.data.label_maps import LabelMaps

    maps = LabelMaps(options.file)
    with counting("unpacking", len(maps), quiet=options.quiet) as advance:
        label_files.unpack(maps, options.tree, advance=advance)
    print(f"{options.tree}: {len(maps):,} label maps")
    return 0


def _check(options: argparse.Namespace) -> int:
    from rmt_jax.data.label_maps import LabelMaps

    code, content = _report(LabelMaps(options.file), _data(options), options)
    write_json(options.json, content)
    return code


def _make(options: argparse.Namespace) -> int:
    from rmt_jax.convert import read_weights
    from rmt_jax.data import open_source
    from rmt_jax.training.label_maker import make_maps, make_teacher

    _check_file(options.file, force=options.force)
    data = _data(options)
    source = open_source(data, data.train_split)
    teacher = make_teacher(read_weights(options.teacher, weights=options.weights), source, options.dtype)
    say(f"{teacher.provenance['source']} labels {len(source):,} pictures of {source.name}", stderr=True)
    with counting("labelling", len(source), quiet=options.quiet) as advance:
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


def _data(options: argparse.Namespace) -> "DataConfig":
    """The data set that is meant; `train_split` is the split."""
    from rmt_jax.training.command_line import load_config
    from rmt_jax.training.config import parse

    if options.config is None and options.data_name is None:
        raise ValueError("Which data set? Give --config RECIPE, or --data-name NAME and --data-dir DIR.")
    if options.config_words and options.config is None:
        raise ValueError(f"{options.config_words[0]}: this changes a recipe, which --config FILE gives.")
    values = load_config(options.config, options.config_words) if options.config else {}
    given = {"name": options.data_name, "dir": options.data_dir}
    given = {key: value for key, value in given.items() if value is not None}
    data = parse(values | {"data": dict(values.get("data", {})) | given}).data
    return data if options.split is None else dataclasses.replace(data, train_split=options.split)


def _report(maps: "LabelMaps", data: "DataConfig", options: argparse.Namespace) -> tuple[int, dict[str, Any]]:
    """Print which pictures have maps; returns the exit code, and what was found."""
    from rmt_jax.data import open_source
    from rmt_jax.data.label_writer import coverage

    source = open_source(data, data.train_split)
    with counting("checking", len(source), quiet=options.quiet) as advance:
        found = coverage(maps, _picture_ids(source), advance)
    print(_coverage_text(found, source.name))
    foreign = maps.num_classes > source.num_classes
    if foreign:
        print(f"The maps name the class {maps.num_classes - 1}, but {source.name} has {source.num_classes} classes.")
    content = {"name": source.name, **found._asdict()}
    content |= {"classes": source.num_classes, "classes_of_maps": maps.num_classes}
    return (1 if found.missing or foreign else 0), content


def _picture_ids(source: "ImageSource") -> Iterator[str]:
    return map(source.id, range(len(source)))


def _coverage_text(found: "Coverage", name: str) -> str:
    lines = [f"{name}: {found.pictures - found.missing:,} of {found.pictures:,} pictures have a label map."]
    if found.missing:
        lines.append(f"{found.missing:,} have none: {_some(found.first_missing, found.missing)}")
    if found.surplus:
        lines.append(f"{found.surplus:,} maps are of other pictures: {_some(found.first_surplus, found.surplus)}")
    return "\n".join(lines)


def _some(names: list[str], count: int | None = None, limit: int = 5) -> str:
    """The first few, and dots where there are more."""
    return ", ".join(names[:limit]) + (", ..." if max(len(names), count or 0) > limit else "")
