"""`rmt benchmark input`: how fast training pictures are prepared."""

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from rmt_jax.cli.output import Console, add_json, describe_environment, say, write_json

if TYPE_CHECKING:  # what is heavy is imported where it is used
    from rmt_jax.data.benchmark import InputBenchmark

DESCRIPTION = """\
How fast one core prepares the training pictures of a recipe, stage by stage, and beside it the same recipe as
torchvision and timm write it (Pillow decodes, the CPU normalises and erases; with NumPy in place of torch). Both get
the same pictures and the same random draws, in one thread and in turn. Then the whole loader, on all cores.

  rmt benchmark input --config configs/rmt_s.py --config.data.dir=/data
  rmt benchmark input --config configs/rmt_s.py --synthetic      without a data set: JPEGs of 500x375 in memory
"""

PACKAGES = ("numpy", "pillow", "simplejpeg", "grain")


def add_parser(measures: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `rmt benchmark input`."""
    inputs = measures.add_parser(
        "input",
        help="how fast training pictures are prepared",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="--config.KEY=VALUE changes a value of the recipe.",
    )
    inputs.add_argument("--config", required=True, metavar="FILE", help="a recipe, such as configs/rmt_s.py")
    inputs.add_argument("--synthetic", action="store_true", help="JPEGs of 500x375 in memory, not the recipe's data")
    inputs.add_argument("--block-size", type=int, default=128, metavar="N", help="pictures in a block (default: 128)")
    inputs.add_argument("--blocks", type=int, default=11, metavar="N", help="pairs of blocks (default: 11)")
    add_json(inputs, "everything measured")
    inputs.set_defaults(run=_run_input, config_words=[])


def _run_input(options: argparse.Namespace) -> int:
    from rmt_jax.data.benchmark import SyntheticSource, input_benchmark
    from rmt_jax.training.command_line import load_config
    from rmt_jax.training.config import parse

    for name in ("block_size", "blocks"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')}={getattr(options, name)}: expected 1 or more.")
    config = parse(load_config(options.config, options.config_words))
    if options.synthetic and config.data.token_labels.file is not None:
        raise ValueError("--synthetic: there are no label maps of these pictures. Leave it out, or the token labels.")
    source = SyntheticSource() if options.synthetic else _open(config.data)
    result = input_benchmark(
        source, config.data, erasing=config.erasing, seed=config.seed, images=options.block_size, blocks=options.blocks
    )
    _print(result)
    write_json(options.json, {"config": options.config, "changes": options.config_words, **_json(result)})
    return 0


def _open(data: Any) -> Any:
    from rmt_jax.data import open_source

    try:
        return open_source(data, data.train_split)
    except (ValueError, OSError) as error:
        raise ValueError(f"{error}\nTo measure without the data set, give --synthetic.") from error


def _print(result: "InputBenchmark") -> None:
    from rmt_jax.data.benchmark import cores

    rows = [result.ours.stages, result.baseline.stages]
    stages = [*result.ours.stages, *(stage for stage in result.baseline.stages if stage not in result.ours.stages)]
    table = Table(title="Preparing a training picture in one thread", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("stage", style="cyan", no_wrap=True)
    for name in ("rmt_jax", "torchvision / timm"):
        table.add_column(f"{name}\nms", justify="right")
        table.add_column("\nshare", justify="right")
    for stage in stages:
        cells = [(f"{row[stage]:.3f}", f"{row[stage] / sum(row.values()):.0%}") if stage in row else "" for row in rows]
        table.add_row(stage, *(cell for pair in cells for cell in (pair or ("", ""))))
    table.add_section()
    table.add_row("whole", f"{result.ours.wall:.3f}", "", f"{result.baseline.wall:.3f}", "")
    table.add_row("pictures/s", f"{1000 / result.ours.wall:.0f}", "", f"{1000 / result.baseline.wall:.0f}", "")
    Console().print(table)
    blocks, low, high = len(result.ratios), min(result.ratios), max(result.ratios)
    lines = [
        f"One core prepares {result.ratio:.2f} times as many pictures as the baseline: the median of {blocks} pairs of "
        f"blocks of {result.images} pictures, from {low:.2f} to {high:.2f}.",
        f"The whole loader, {result.workers} processes of {result.threads} threads on {cores()} cores: "
        f"{result.loader_images_per_second:.0f} pictures/s.",
        f"Data: {result.source}, {result.image_bytes / 1000:.0f} kB a picture, read once before.",
    ]
    for line in lines:
        say(line)


def _json(result: "InputBenchmark") -> dict[str, Any]:
    return {
        "result": {**dataclasses.asdict(result), "ratio": result.ratio},
        "environment": describe_environment(PACKAGES),
    }
