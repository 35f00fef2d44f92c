"""`rmt models`: the family with its size and cost."""

import argparse
import functools

import jax
from flax import nnx
from rich import box
from rich.console import Console
from rich.table import Column, Table

from rmt_jax.models import Classifier, abstract_model, create_model, list_models, variant
from rmt_jax.models.flops import count_flops


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    parser = commands.add_parser("models", help="list the models with their size and cost")
    parser.add_argument("--image-size", type=int, default=224, help="side of the square picture (default: 224)")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    if options.image_size < 32:
        raise ValueError(f"--image-size {options.image_size}: the models take 32 pixels or more.")
    print_models(options.image_size)
    return 0


def print_models(image_size: int) -> None:
    """Print a table of all models: parameters, multiply-accumulates at a size, channels, depths and drop path."""
    header = ("model", "parameters", f"FLOPs @{image_size}", "channels", "depths", "drop path")
    table = Table(*(Column(name, no_wrap=True) for name in header), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in list_models():
        config = variant(name)
        model = abstract_model(functools.partial(_create, name))
        parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
        flops = count_flops(config, image_size, image_size)
        dims, depths = (" ".join(map(str, values)) for values in (config.embed_dims, config.depths))
        table.add_row(name, f"{parameters:,}", f"{flops / 1e9:.3f} G", dims, depths, f"{config.drop_path:g}")
    Console().print(table)


def _create(name: str, rngs: nnx.Rngs) -> Classifier:
    return create_model(name, rngs=rngs)
