"""`rmt models`: the family with its size and cost."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from typing import Any, get_args

import jax
from flax import nnx
from rich import box
from rich.console import Console
from rich.table import Column, Table

from rmt_jax.models import DetectionHead, SegmentationHead, abstract_model, create_model, list_models, variant
from rmt_jax.models.factory import NUM_CLASSES
from rmt_jax.models.flops import count_detector_flops, count_flops, count_segmentor_flops

# (height, width) of the pictures that the cost is of, where the command does not say.
SIZES = {"classification": (224, 224), "segmentation": (512, 512), "detection": (800, 1280)}


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    parser = commands.add_parser("models", help="list the models with their size and cost")
    parser.add_argument(
        "--image-size",
        type=int,
        help="side of the square picture (default: 224, of segmentation 512, of detection 1280x800)",
    )
    parser.add_argument(
        "--task", choices=SIZES, default="classification", help="what they do (default: classification)"
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    size = SIZES[options.task] if options.image_size is None else (options.image_size,) * 2
    if min(size) < 32:
        raise ValueError(f"--image-size {options.image_size}: the models take 32 pixels or more.")
    print_models(size, options.task)
    return 0


def print_models(size: tuple[int, int], task: str = "classification") -> None:
    """Print a table of all models: parameters, multiply-accumulates at a size, channels, depths, drop path or head."""
    header: tuple[str, ...]
    height, width = size
    cost = ("parameters", f"FLOPs @{width if height == width else f'{width}x{height}'}")
    if task == "classification":
        header, rows = ("model", *cost, "channels", "depths", "drop path"), _classifier_rows(*size)
    else:
        header, rows = ("model", "head", *cost), _dense_rows(*size, task)
    table = Table(*(Column(name, no_wrap=True) for name in header), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def _classifier_rows(height: int, width: int) -> Iterator[tuple[str, ...]]:
    for name in list_models():
        config = variant(name)
        dims, depths = (" ".join(map(str, values)) for values in (config.embed_dims, config.depths))
        cost = _parameters(name), _giga(count_flops(config, height, width))
        yield name, *cost, dims, depths, f"{config.drop_path:g}"


def _dense_rows(height: int, width: int, task: str) -> Iterator[tuple[str, ...]]:
    """With the classes of ADE20K or COCO. Starred models have another head, of classification, and no rows."""
    heads: Sequence[Any] = get_args(SegmentationHead if task == "segmentation" else DetectionHead)
    count: Callable[..., int] = count_segmentor_flops if task == "segmentation" else count_detector_flops
    for name in list_models():
        config = variant(name, num_classes=NUM_CLASSES[task])
        for head in () if config.aux_head else heads:
            yield name, head, _parameters(name, task=task, head=head), _giga(count(config, head, height, width))


def _parameters(name: str, **options: Any) -> str:
    model = abstract_model(lambda rngs: create_model(name, rngs=rngs, **options))
    return f"{sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))):,}"


def _giga(flops: int) -> str:
    return f"{flops / 1e9:.3f} G"
