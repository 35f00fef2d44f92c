"""The command `rmt`."""

import argparse
import functools
from collections.abc import Sequence

import jax
from flax import nnx
from rich import box
from rich.console import Console
from rich.table import Column, Table

from rmt_jax.models import Classifier, abstract_model, create_model, list_models, variant
from rmt_jax.models.flops import count_flops
from rmt_jax.version import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="rmt", description="RMT in JAX. To train, see: python main.py --help")
    parser.add_argument("--version", action="version", version=f"rmt_jax {__version__}")
    commands = parser.add_subparsers(title="commands", required=True)
    models = commands.add_parser("models", help="list the models with their size and cost")
    models.add_argument("--image-size", type=int, default=224, help="side of the square picture (default: 224)")
    models.set_defaults(run=lambda options: print_models(options.image_size))
    options = parser.parse_args(arguments)
    if getattr(options, "image_size", 32) < 32:
        parser.error(f"--image-size {options.image_size}: the models take 32 pixels or more")
    options.run(options)
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
