"""`rmt compile`: the training step compiled for devices that need not be here."""

import argparse
import dataclasses
import pathlib
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from rmt_jax.cli.output import Console, add_json, add_quiet, check_output, format_size, say, write_json

if TYPE_CHECKING:  # the other commands do not need the training
    import jax

    from rmt_jax.models import Remat
    from rmt_jax.training.ahead import Compiled
    from rmt_jax.training.chips import Chip
    from rmt_jax.training.config import Config

DESCRIPTION = """\
Compiles the real training step of a recipe and says whether it fits: memory of each part, operations and bytes an
image, collectives, a roofline estimate. For a TPU slice no TPU is needed, only libtpu: pip install 'rmt-jax[tpu]'.
Without --topology it is compiled for the devices of this machine.

  rmt compile --config configs/rmt_l.py --topology v5e:16x16
  rmt compile --config configs/rmt_s.py --topology v6e-64 --batch-size 128 --remat all
  rmt compile --config configs/rmt_b.py --topology v4-32 --find-batch --config.mesh.fsdp=4

All figures are the compiler's: nothing is run. Exit code 1 when it does not fit.
"""
POLICIES: "tuple[Remat, ...]" = ("none", "dots", "full")  # rmt_jax.models.Remat


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", summary: str) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "compile",
        help=summary,
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="--config.KEY=VALUE changes a value of the recipe.",
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="a recipe, such as configs/rmt_s.py")
    parser.add_argument("--topology", metavar="NAME", help="v5e:16x16, or a slice's name such as v5e-256")
    parser.add_argument("--slices", type=int, default=1, metavar="N", help="so many of them (default: 1)")
    parser.add_argument("--batch-size", type=int, metavar="N", help="pictures a device (default: the recipe's batch)")
    parser.add_argument(
        "--find-batch",
        action="store_true",
        help="the largest batch a device that fits, to an eighth; --batch-size is tried first",
    )
    parser.add_argument(
        "--remat", choices=[*POLICIES, "all"], help="in place of the recipe's model.remat; all compares them"
    )
    parser.add_argument("--quick", action="store_true", help="compile faster, for speed figures that are worse")
    parser.add_argument("--hlo", type=pathlib.Path, metavar="FILE", help="write the compiled program to this file")
    add_json(parser, "all figures")
    add_quiet(parser)
    parser.set_defaults(run=_run, config_words=[])


def _run(options: argparse.Namespace) -> int:
    from rmt_jax.training.ahead import compile_step, with_batch
    from rmt_jax.training.command_line import load_config
    from rmt_jax.training.config import parse
    from rmt_jax.training.metrics import replace_file

    _check(options)
    config = parse(load_config(options.config, options.config_words))
    _check_parts(options, config.grad_accum_steps)
    chip, devices = _devices(options)
    policies = POLICIES if options.remat == "all" else [options.remat or config.model.remat]
    found: dict[str, Compiled] = {}
    console = Console()
    for policy in policies:
        chosen = dataclasses.replace(config, model=dataclasses.replace(config.model, remat=policy))
        if options.find_batch:
            found[policy] = _find_batch(chosen, devices, chip, options.batch_size, quiet=options.quiet)
            continue
        if options.batch_size is not None:
            chosen = with_batch(chosen, options.batch_size, len(devices))
        found[policy], text = compile_step(chosen, devices, chip, quick=options.quick)
        if options.hlo is not None:
            replace_file(options.hlo, text.encode())
    title = f"{config.model.name} in {config.model.dtype}, {len(devices)} x {devices[0].device_kind}"
    if len(found) == 1:
        _print_one(console, title, config, next(iter(found.values())), len(devices), chip)
    else:
        _print_policies(console, title, found, len(devices), chip)
    if config.distill.teacher is not None:
        say("Without the teacher of distill.teacher: its weights, temporaries and operations come on top.")
    content = {policy: dataclasses.asdict(compiled) for policy, compiled in found.items()}
    described = {"config": options.config, "changes": options.config_words, "topology": options.topology}
    write_json(options.json, described | {"slices": options.slices, "remat": content})
    return 0 if all(compiled.fits for compiled in found.values()) else 1


def _check(options: argparse.Namespace) -> None:
    for name in ("batch_size", "slices"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')}={value}: expected 1 or more.")
    if options.hlo is not None and (options.find_batch or options.remat == "all"):
        raise ValueError("--hlo writes one program: not with --find-batch or --remat=all.")
    if options.slices > 1 and options.topology is None:
        raise ValueError("--slices needs --topology.")
    check_output(options.hlo, "--hlo")


def _check_parts(options: argparse.Namespace, parts: int) -> None:
    """Raises ValueError for a --batch-size that cannot be cut; the search cuts its own."""
    batch = options.batch_size
    if batch is not None and batch % parts and not options.find_batch:
        below, above = batch // parts * parts, -(-batch // parts) * parts
        choice = f"{below} or {above}" if below else str(above)
        raise ValueError(f"--batch-size={batch} cannot be cut into grad_accum_steps={parts} equal parts. Use {choice}.")


def _devices(options: argparse.Namespace) -> "tuple[Chip | None, list[jax.Device]]":
    from rmt_jax.training.chips import chip_of, find_devices, open_topology

    if options.topology is None:
        devices = find_devices()
        return chip_of(devices), devices
    return open_topology(options.topology, options.slices)


def _find_batch(
    config: "Config", devices: "list[jax.Device]", chip: "Chip | None", batch: int | None, *, quiet: bool
) -> "Compiled":
    """The compilation of the largest batch that fits, or of the smallest tried where none does."""
    from rmt_jax.training.ahead import find_batch

    tried = []
    for compiled in find_batch(config, devices, chip, start=batch or 32):
        tried.append(compiled)
        verdict = "fits" if compiled.fits else "does not fit"
        each, seconds = compiled.batch // len(devices), sum(compiled.seconds)
        line = f"remat {config.model.remat}, {each} a device: {format_size(compiled.peak)}, {verdict} ({seconds:.0f} s)"
        if not quiet:
            say(line, stderr=True)
    fitting = [compiled for compiled in tried if compiled.fits]
    return max(fitting, key=lambda compiled: compiled.batch) if fitting else tried[-1]


def _print_one(
    console: Console, title: str, config: "Config", compiled: "Compiled", devices: int, chip: "Chip | None"
) -> None:
    each = compiled.batch // devices
    console.print(f"[bold]{title}[/bold]: batch {compiled.batch:,}, {each} a device", highlight=False)
    table = _table("memory of a device", "")
    for part, size in compiled.state.items():
        table.add_row(part, format_size(size))
    table.add_row("batch", format_size(compiled.inputs))
    if compiled.padding > 0:
        table.add_row("padding of these", format_size(compiled.padding))
    table.add_row("temporaries", format_size(compiled.temporaries))
    table.add_section()
    limit = f" of {format_size(compiled.limit)}" if compiled.limit else ""
    table.add_row("peak", f"{format_size(compiled.peak)}{limit}: {'fits' if compiled.fits else 'does not fit'}")
    console.print(table)
    for line in _work(compiled, each, chip):
        say(line)
    if compiled.collectives:
        table = _table("collectives of a step", "number", "sent by a device")
        for kind, traffic in compiled.collectives.items():
            table.add_row(kind, str(traffic.runs), format_size(float(traffic.bytes)))
        console.print(table)
    trace, compilation = compiled.seconds
    console.print(f"Traced in {trace:.0f} s, compiled in {compilation:.0f} s. Nothing was run.", highlight=False)
    if not compiled.fits:
        console.print("It does not fit: use a smaller batch, --remat, mesh.fsdp or grad_accum_steps.", highlight=False)


def _print_policies(
    console: Console, title: str, found: "dict[str, Compiled]", devices: int, chip: "Chip | None"
) -> None:
    headings = ("batch a device", "temporaries", "peak", "GFLOP an image", "MB an image", "estimated step")
    table = _table("remat", *headings)
    table.title = title
    for policy, compiled in found.items():
        accessed = "" if compiled.bytes_accessed is None else f"{compiled.bytes_accessed / 1e6:,.0f}"
        step = step_time(compiled, compiled.batch // devices, chip)
        table.add_row(
            policy,
            str(compiled.batch // devices),
            format_size(compiled.temporaries),
            format_size(compiled.peak) + ("" if compiled.fits else ", does not fit"),
            f"{compiled.flops / 1e9:.1f}",
            accessed,
            "" if step is None else f"{step * 1e3:.0f} ms",
        )
    console.print(table)
    if chip is not None and any(_lacks_network(compiled, chip) for compiled in found.values()):
        say(f"Estimated step: {_no_step(chip)}.")


def _lacks_network(compiled: "Compiled", chip: "Chip") -> bool:
    """Whether a step sends between slices, and it is not known how fast."""
    from rmt_jax.training.cost import BETWEEN_SLICES

    return chip.network is None and BETWEEN_SLICES in compiled.collectives


def _no_step(chip: "Chip") -> str:
    return f"none, since Google's documentation does not say how fast {chip.name} sends between slices"


def _work(compiled: "Compiled", each: int, chip: "Chip | None") -> list[str]:
    lines = [f"an image: {compiled.flops / 1e9:.1f} GFLOP of matrix products and convolutions"]
    if compiled.bytes_accessed is not None:
        lines[0] += f", {compiled.bytes_accessed / 1e6:,.0f} MB between memory and chip"
    times, step = step_times(compiled, each, chip), step_time(compiled, each, chip)
    if chip is None or not times:
        return lines
    roofline = ", ".join(f"{part} {seconds * 1e3:.1f} ms" for part, seconds in times.items())
    lines.append(f"roofline of {chip.name}: {roofline} a step: ")
    if step is None:
        lines[-1] += _no_step(chip)
    else:
        lines[-1] += f"about {step * 1e3:.0f} ms, {compiled.batch / step:,.0f} images/s in all"
    return lines


def step_times(compiled: "Compiled", each: int, chip: "Chip | None") -> dict[str, float]:
    """{part of a step: seconds} by the roofline, without what is not known; {} without a program or a chip.

    Args:
        compiled: the step.
        each: pictures a device.
        chip: of the devices.
    """
    from rmt_jax.training.cost import BETWEEN_SLICES

    if chip is None or compiled.bytes_accessed is None:
        return {}
    sent = {kind: traffic.bytes for kind, traffic in compiled.collectives.items()}
    between = sent.pop(BETWEEN_SLICES, None)
    times = {
        "arithmetic": each * compiled.flops / chip.flops,
        "memory": each * compiled.bytes_accessed / chip.bandwidth,
        "links": sum(sent.values()) / chip.links,
    }
    if between is not None and chip.network is not None:
        times[BETWEEN_SLICES] = between / chip.network
    return times


def step_time(compiled: "Compiled", each: int, chip: "Chip | None") -> float | None:
    """Seconds of a step by the roofline: the slower of arithmetic and memory, and what travels after it.

    None without a program or a chip, and where it is not known how fast the chip sends between slices.
    """
    times = step_times(compiled, each, chip)
    if chip is None or not times or _lacks_network(compiled, chip):
        return None
    return max(times.pop("arithmetic"), times.pop("memory")) + sum(times.values())


def _table(first: str, *others: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column(first, style="cyan", no_wrap=True)
    for heading in others:
        table.add_column(heading, justify="right")
    return table
