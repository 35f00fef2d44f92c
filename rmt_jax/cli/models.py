"""`rmt models`: the family with its size and cost."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from typing import Any, get_args

from rmt_jax.cli.output import Console, add_json, write_json

DESCRIPTION = """\
Lists the models: parameters, and multiply-accumulates of a picture as fvcore counts them.

  rmt models
  rmt models --image-size 384
  rmt models --task segmentation      with each head, and the classes of ADE20K
  rmt models --json -
"""

# (height, width) of the pictures that the cost is of, where the command does not say.
SIZES = {"classification": (224, 224), "segmentation": (512, 512), "detection": (800, 1280)}


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", summary: str) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "models", help=summary, description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--image-size",
        type=int,
        metavar="N",
        help="pixels along a side (default: 224, of segmentation 512, of detection 1280x800)",
    )
    parser.add_argument(
        "--task", choices=SIZES, default="classification", help="what they do (default: classification)"
    )
    add_json(parser, "the list")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    size = SIZES[options.task] if options.image_size is None else (options.image_size,) * 2
    if min(size) < 32:
        raise ValueError(f"--image-size {options.image_size}: the models take 32 pixels or more.")
    write_json(options.json, print_models(size, options.task))
    return 0


def print_models(size: tuple[int, int], task: str = "classification") -> list[dict[str, Any]]:
    """Print a table of what `describe_models` says, which is returned."""
    from rich import box
    from rich.table import Column, Table

    models = list(describe_models(size, task))
    height, width = size
    headings = {"flops": f"FLOPs @{width if height == width else f'{width}x{height}'}", "drop_path": "drop path"}
    header = (headings.get(name, name) for name in models[0])
    table = Table(*(Column(name, no_wrap=True) for name in header), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for model in models:
        table.add_row(*(_words(name, value) for name, value in model.items()))
    Console().print(table)
    return models


def _words(name: str, value: Any) -> str:
    if name == "flops":
        return f"{value / 1e9:.3f} G"
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return value if isinstance(value, str) else f"{value:,}" if isinstance(value, int) else f"{value:g}"


def describe_models(size: tuple[int, int], task: str) -> Iterator[dict[str, Any]]:
    """Parameters and multiply-accumulates at (height, width) of each model with each head, and its architecture.

    Starred models have another head, of classification, and are left out of the other tasks, whose classes are those of
    ADE20K or COCO.
    """
    from rmt_jax.models import DetectionHead, SegmentationHead, list_models, variant
    from rmt_jax.models.factory import NUM_CLASSES
    from rmt_jax.models.flops import count_detector_flops, count_flops, count_segmentor_flops

    if task == "classification":
        for name in list_models():
            config = variant(name)
            cost = {"parameters": _parameters(name), "flops": count_flops(config, *size)}
            shape = {"channels": config.embed_dims, "depths": config.depths, "drop_path": config.drop_path}
            yield {"model": name} | cost | shape
        return
    heads: Sequence[Any] = get_args(SegmentationHead if task == "segmentation" else DetectionHead)
    count: Callable[..., int] = count_segmentor_flops if task == "segmentation" else count_detector_flops
    for name in list_models():
        config = variant(name, num_classes=NUM_CLASSES[task])
        for head in () if config.aux_head else heads:
            parameters = _parameters(name, task=task, head=head)
            yield {"model": name, "head": head, "parameters": parameters, "flops": count(config, head, *size)}


def _parameters(name: str, **options: Any) -> int:
    import jax
    from flax import nnx

    from rmt_jax.models import abstract_model, create_model

    model = abstract_model(lambda rngs: create_model(name, rngs=rngs, **options))
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
