"""`rmt benchmark model | train | compile`: the speed of models and recipes, here or as a compiler for TPUs sees it."""

import argparse
import dataclasses
import resource
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from rmt_jax.cli.benchmark_start import measure_start
from rmt_jax.cli.output import Console, add_json, describe_environment, format_size, say, write_json

if TYPE_CHECKING:  # the other commands do not need the training
    from flax import nnx

    from rmt_jax.training.config import Config
    from rmt_jax.training.speed import Candidate
    from rmt_jax.training.timing import Timing, Work

MODEL_DESCRIPTION = """\
How fast a model classifies: batches started one after the other without a wait, for a second a round, as in a training;
and how long one takes alone, until it is done. With --vs torch beside it the PyTorch model of this repository's tests,
with the same weights, in the same process and in turn: eager, channels-last and compiled. The best of the first two is
what the ratio compares with, as the median over the rounds.

  rmt benchmark model rmt_s --batch-size 8
  rmt benchmark model rmt_t --batch-size 8 --vs torch --json rmt_t.json
  rmt benchmark model rmt_t --batch-size 8 --profile
  rmt benchmark model rmt_s --batch-size 128 --dtype bfloat16 --topology v5e:2x2

With --topology nothing is run: the forward pass and a block of each stage are compiled for TPU chips (libtpu), a batch
for each; printed are operations and bytes of a picture, and the bytes if arguments were read and results written once.
"""
TRAIN_DESCRIPTION = """\
How fast the training step of main.py runs: forward, backward, optimiser and moving average, without loading data. With
--vs torch beside it the same in PyTorch, as for `rmt benchmark model`. What it costs on TPUs: see `rmt compile`.

  rmt benchmark train rmt_s --batch-size 8 --vs torch
  rmt benchmark train --config configs/rmt_s.py --batch-size 64
"""
COMPILE_DESCRIPTION = """\
What passes before the first step is over: the package imported, the training step traced, compiled and run; then what
the host does for each further step before it is free again.

  rmt benchmark compile rmt_s --batch-size 8
  JAX_COMPILATION_CACHE_DIR=/tmp/jax rmt benchmark compile rmt_s    the second time: from the cache
"""
OURS = "rmt_jax"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


def add_parsers(measures: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the three measures."""
    for name, summary, description in (
        ("model", "how fast a model classifies", MODEL_DESCRIPTION),
        ("train", "how fast the training step runs", TRAIN_DESCRIPTION),
        ("compile", "what passes before the first step is over", COMPILE_DESCRIPTION),
    ):
        parser = measures.add_parser(
            name,
            help=summary,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            epilog="--config.KEY=VALUE changes a value of the recipe.",
        )
        parser.add_argument("model", nargs="?", metavar="MODEL", help="a name of `rmt models`")
        parser.add_argument("--config", metavar="FILE", help="a recipe in place of a model")
        parser.add_argument("--batch-size", type=int, metavar="N", help="pictures (default: 8, or the recipe's)")
        parser.add_argument("--image-size", type=int, metavar="N", help="pixels along a side (default: 224)")
        parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="to compute in (default: float32)")
        add_json(parser, "everything measured")
        if name != "compile":
            parser.add_argument("--rounds", type=int, default=7, metavar="N", help="of each (default: 7)")
            parser.add_argument("--vs", choices=["torch"], help="measure the PyTorch model beside it")
            parser.add_argument("--profile", action="store_true", help="show where the time goes, by part of the model")
        if name == "model":
            parser.add_argument("--topology", metavar="NAME", help="compile for TPU chips such as v5e:2x2")
        parser.set_defaults(run=_run, measure=name, config_words=[])


def _run(options: argparse.Namespace) -> int:
    _check(options)
    config = _config(options)
    if getattr(options, "topology", None) is None:
        _prepare_process(config, options.measure)
    if options.measure == "compile":
        result = measure_start(config, _title(config))
    elif getattr(options, "topology", None) is not None:
        result = _compile_for(config, options.topology)
    else:
        result = _measure(config, options)
    described = {"measure": options.measure, "config": dataclasses.asdict(config), **result}
    write_json(options.json, described | {"environment": describe_environment(PACKAGES)})
    return 0


def _check(options: argparse.Namespace) -> None:
    if (options.model is None) == (options.config is None):
        raise ValueError(f"rmt benchmark {options.measure}: give a model's name, such as rmt_s, or --config FILE.")
    for name in ("batch_size", "image_size", "rounds"):
        value = getattr(options, name, None)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')}={value}: expected 1 or more.")
    if getattr(options, "topology", None) is not None and options.vs is not None:
        raise ValueError("--topology runs nothing, so there is nothing to compare: leave out --vs.")
    if getattr(options, "vs", None) is not None:
        from rmt_jax.convert.torch_file import require_torch

        require_torch("--vs torch")


def _config(options: argparse.Namespace) -> "Config":
    """The recipe, or a plain one for a model, with what the options say in its place."""
    from rmt_jax.models import variant
    from rmt_jax.training.ahead import with_batch
    from rmt_jax.training.command_line import load_config
    from rmt_jax.training.config import parse

    if options.config is not None:
        config = parse(load_config(options.config, options.config_words))
        if config.task != "classification":
            raise ValueError(f"--config {options.config} is of {config.task}: this measures classification alone.")
    elif options.config_words:
        raise ValueError(f"{options.config_words[0]}: this changes a recipe, which --config FILE gives.")
    else:
        variant(options.model)  # names the models there are
        config = parse({"batch_size": 8, "model": {"name": options.model, "dtype": "float32"}})
    if options.batch_size is not None:
        config = with_batch(config, options.batch_size, 1)
    if options.image_size is not None:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, image_size=options.image_size))
    if options.dtype is not None:
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, dtype=options.dtype))
    return config


def _prepare_process(config: "Config", measure: str) -> None:
    import jax

    from rmt_jax.training.memory import keep_freed_memory
    from rmt_jax.training.sharding import check_division

    if measure != "model":  # main.py does, what classifies does not
        keep_freed_memory()
    parts = 1 if measure == "model" else config.grad_accum_steps
    check_division("--batch-size", config.batch_size, jax.device_count(), parts)


def _title(config: "Config") -> str:
    size = config.data.image_size
    return f"{config.model.name}, {config.model.dtype}, {config.batch_size} pictures of {size}x{size}"


def _measure(config: "Config", options: argparse.Namespace) -> dict[str, Any]:
    import jax

    from rmt_jax.training.describe import describe_formulations
    from rmt_jax.training.memory import describe_memory
    from rmt_jax.training.profile import name_all_operations
    from rmt_jax.training.speed import forward_candidate, model_of, train_candidate
    from rmt_jax.training.timing import Work, time_in_turn

    if options.profile:
        name_all_operations()
    train = options.measure == "train"
    others: dict[str, Work] = {}
    failures: dict[str, str] = {}
    model = model_of(config)
    difference = None
    if options.vs == "torch":
        others, failures, difference = _torch_forms(config, model, train=train)
    ours = (train_candidate if train else forward_candidate)(config, model)
    timings = time_in_turn({OURS: ours.work, **others}, rounds=options.rounds)
    what = "training step" if train else "forward pass"
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    used = describe_formulations(config, jax.default_backend())
    _print_timings(f"{what} of {_title(config)} on {device}", config, timings, failures)
    if difference is not None:
        say(f"Same weights: logits differ by {difference:.1e} of the largest (float32, highest precision).")
    parts = _profile(ours) if options.profile else None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    say(f"Formulations: {used}. Freed memory: {describe_memory()}.")
    if ours.memory is not None:
        say(f"Arguments, results and temporaries of {OURS}'s program: {format_size(ours.memory)}.")
    say(f"Peak memory of this process: {format_size(peak)}. {options.rounds} rounds, every form in each.")
    return {
        "devices": device,
        "formulations": used,
        "seconds": {name: timing.rounds for name, timing in timings.items()},
        "latencies": {name: timing.latencies for name, timing in timings.items()},
        "images_per_second": {name: config.batch_size / timing.median for name, timing in timings.items()},
        "ratio": _ratio(timings),
        "program_bytes": ours.memory,
        "process_bytes": peak,
        "freed_memory": describe_memory(),
        "failures": failures,
        "difference": difference,
        "profile": parts,
    }


def _profile(ours: "Candidate") -> list[dict[str, Any]]:
    """Print and return the time of each part of the model, the most expensive first."""
    from rmt_jax.training.profile import OTHER, profile

    found = profile(ours.work.run, ours.text())
    parts: dict[tuple[str, str], list[float]] = {}
    for place, seconds in found.places.items():
        parts.setdefault((place.stage, place.part), [0.0, 0.0])[place.backward] += seconds
    rows = sorted(parts.items(), key=lambda row: -sum(row[1]))
    table = Table(title="Where the time goes", title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("stage", "part"):
        table.add_column(heading, style="cyan")
    for heading in ("forward, ms", "backward, ms", "share"):
        table.add_column(heading, justify="right")
    for (stage, part), times in rows:
        cells = (f"{seconds * 1e3:,.2f}" if seconds else "" for seconds in times)
        table.add_row(stage.removeprefix("stage"), part, *cells, f"{sum(times) / found.total:.1%}")
    Console().print(table)
    say(f"The operations of a call take {found.total * 1e3:,.1f} ms together; {OTHER!r}: no part of the model.")
    names = "stage", "part", "forward", "backward"
    return [dict(zip(names, (*place, *times), strict=True)) for place, times in rows]


def _torch_forms(
    config: "Config", model: "nnx.Module", *, train: bool
) -> "tuple[dict[str, Work], dict[str, str], float]":
    """(the forms of the PyTorch model that work, why others do not, how far its logits are from the model's)."""
    import jax

    from rmt_jax.convert.names import to_torch
    from rmt_jax.convert.torch_speed import TorchModel
    from rmt_jax.training.ahead import NUM_CLASSES
    from rmt_jax.training.speed import logits, normalised_pictures, weights_of
    from rmt_jax.training.timing import Work

    images = normalised_pictures(config)
    theirs = TorchModel(
        config.model.resolve(NUM_CLASSES),
        to_torch(weights_of(model)),
        images,
        bfloat16=config.model.dtype == "bfloat16",
        gpu=jax.default_backend() == "gpu",
    )
    found, expected = logits(model, images[:1]), theirs.logits()
    difference = float(abs(found - expected).max() / abs(expected).max())
    starts, failures = theirs.forms(
        train=train, weight_decay=config.optimizer.weight_decay, ema_decay=config.step_ema_decay
    )
    return {form: Work(start, lambda _: theirs.finish()) for form, start in starts.items()}, failures, difference


def _ratio(timings: "dict[str, Timing]") -> dict[str, Any] | None:
    """How many times faster than the better of PyTorch's two ways of running it as it is written."""
    from rmt_jax.convert.torch_speed import CHANNELS_LAST, EAGER
    from rmt_jax.training.timing import ratio

    others = [name for name in (EAGER, CHANNELS_LAST) if name in timings]
    if not others:
        return None
    best = min(others, key=lambda name: timings[name].median)
    return {"to": best, "value": ratio(timings[best], timings[OURS])}


def _print_timings(title: str, config: "Config", timings: "dict[str, Timing]", failures: dict[str, str]) -> None:
    say(title)  # longer than a table is wide
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("", style="cyan", no_wrap=True)
    for heading in ("images/s", "ms a batch", "from", "to", "alone, ms"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, timing in timings.items():
        columns = timing.median, min(timing.rounds), max(timing.rounds), timing.latency
        rate = f"{config.batch_size / timing.median:,.1f}"
        table.add_row(name, rate, *(f"{seconds * 1e3:,.1f}" for seconds in columns))
    Console().print(table)
    for name, reason in failures.items():
        say(f"{name} does not work: {reason}")
    if (found := _ratio(timings)) is not None:
        say(f"rmt_jax is {found['value']:.2f} times as fast as {found['to']} (median of the rounds).")


def _compile_for(config: "Config", topology: str) -> dict[str, Any]:
    from rmt_jax.training.ahead import with_batch
    from rmt_jax.training.block_cost import block_costs, forward_cost
    from rmt_jax.training.chips import open_topology

    chip, devices = open_topology(topology)
    spread = with_batch(config, config.batch_size, len(devices))
    costs = [forward_cost(spread, devices), *block_costs(spread, devices)]
    say(f"{_title(config)} a chip, for {chip.name}")
    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True)
    table.add_column("a picture", style="cyan", no_wrap=True)
    for heading in ("blocks", "GFLOP", "MB", "MB\nonce", "MB by\nonce", "compute\nus", "memory\nus", "MiB"):
        table.add_column(heading, justify="right", no_wrap=True)
    for cost in costs:
        table.add_row(
            "  and backward" if cost.backward else cost.name,
            str(cost.count or ""),
            f"{cost.flops / 1e9:.2f}",
            f"{cost.bytes / 1e6:.1f}",
            f"{cost.floor / 1e6:.1f}",
            f"{cost.bytes / cost.floor:.1f}",
            f"{cost.flops / chip.flops * 1e6:.1f}",
            f"{cost.bytes / chip.bandwidth * 1e6:.1f}",
            f"{cost.temporaries / 2**20:,.0f}",
        )
    Console().print(table)
    say("MB once: if arguments were read and results written once. MiB: temporaries of a chip. A block of each stage.")
    say(f"Compiler's figures of unrolled programs for {topology}; nothing was run.")
    return {"topology": topology, "costs": [dataclasses.asdict(cost) for cost in costs]}
