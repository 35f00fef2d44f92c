"""`rmt models`: the family with its size and cost."""

import argparse
from collections.abc import Iterator
from typing import Any, get_args

import jax
from flax import nnx
from rich import box
from rich.console import Console
from rich.table import Column, Table

from rmt_jax.models import SegmentationHead, abstract_model, create_model, list_models, variant
from rmt_jax.models.flops import count_flops, count_segmentor_flops

SIZES = {"classification": 224, "segmentation": 512}


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    parser = commands.add_parser("models", help="list the models with their size and cost")
    parser.add_argument("--image-size", type=int, help="side of the square picture (default: 224, of segmentation 512)")
    parser.add_argument(
        "--task", choices=SIZES, default="classification", help="what they do (default: classification)"
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    image_size: int = SIZES[options.task] if options.image_size is None else options.image_size
    if image_size < 32:
        raise ValueError(f"--image-size {image_size}: the models take 32 pixels or more.")
    print_models(image_size, options.task)
    return 0


def print_models(image_size: int, task: str = "classification") -> None:
    """Print a table of all models: parameters, multiply-accumulates at a size, channels, depths, drop path or head."""
    header: tuple[str, ...]
    cost = ("parameters", f"FLOPs @{image_size}")
    if task == "segmentation":
        header, rows = ("model", "head", *cost), _segmentor_rows(image_size)
    else:
        header, rows = ("model", *cost, "channels", "depths", "drop path"), _classifier_rows(image_size)
    table = Table(*(Column(name, no_wrap=True) for name in header), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def _classifier_rows(size: int) -> Iterator[tuple[str, ...]]:
    for name in list_models():
        config = variant(name)
        dims, depths = (" ".join(map(str, values)) for values in (config.embed_dims, config.depths))
        cost = _parameters(name), _giga(count_flops(config, size, size))
        yield name, *cost, dims, depths, f"{config.drop_path:g}"


def _segmentor_rows(size: int) -> Iterator[tuple[str, ...]]:
    """With ADE20K's 150 classes; starred models differ from the plain ones in a head that segmentors do not have."""
    for name in list_models():
        config = variant(name, num_classes=150)
        for head in () if config.aux_head else get_args(SegmentationHead):
            flops = count_segmentor_flops(config, head, size, size)
            yield name, head, _parameters(name, task="segmentation", head=head), _giga(flops)


def _parameters(name: str, **options: Any) -> str:
    model = abstract_model(lambda rngs: create_model(name, rngs=rngs, **options))
    return f"{sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))):,}"


def _giga(flops: int) -> str:
    return f"{flops / 1e9:.3f} G"
