"""The real training step, compiled ahead of time for devices that need not be here, and what that tells."""

import contextlib
import dataclasses
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from rmt_jax.training import classification
from rmt_jax.training.chips import Chip
from rmt_jax.training.config import Config
from rmt_jax.training.cost import Traffic, collective_traffic, count_flops, loop_factor
from rmt_jax.training.kinds import kind_of
from rmt_jax.training.program import Program, train_program, training_task
from rmt_jax.training.sharding import batch_sharding, check_division, make_mesh

# ImageNet's, for classifiers.
NUM_CLASSES = classification.NUM_CLASSES
STEPS_PER_EPOCH = 625

_EFFORT = "jax_exec_time_optimization_effort"
# The compiler's two refusals: of everything, and of temporaries that alone are too large.
_ALL_TOO_LARGE = re.compile(r"[Uu]sed ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm")
_TEMPORARIES_TOO_LARGE = re.compile(r"temporaries \(([\d.]+)([KMGT])\) exceeds available HBM \(([\d.]+)([KMGT])\)")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A step for one batch size, in bytes a device unless said otherwise.

    Attributes:
        batch: pictures in a step, over all devices.
        state: {"parameters", "optimiser", "EMA", "statistics"}: bytes of the state.
        inputs: bytes of the batch.
        padding: bytes that state and batch take more as they lie in memory; 0 without the program.
        temporaries: what the step needs besides its arguments; where it does not fit, what it would need.
        peak: all of these together, which is what has to fit.
        limit: memory of a device, None where it is not known.
        fits: whether the compiler took it, and the peak is within the limit.
        flops: of matrix products and convolutions, a picture, forward and backward.
        bytes_accessed: between memory and chip, a picture, as the compiler counts, but loops as often as they run
            (`loop_factor`); None without the program.
        collectives: {kind: Traffic} of a step.
        seconds: to trace and to compile.
    """

    batch: int
    state: dict[str, float]
    inputs: float
    padding: float
    temporaries: float
    peak: float
    limit: float | None
    fits: bool
    flops: float
    bytes_accessed: float | None
    collectives: dict[str, Traffic]
    seconds: tuple[float, float]


def compile_step(
    config: Config, devices: Sequence[jax.Device], chip: Chip | None, *, quick: bool = False
) -> tuple[Compiled, str]:
    """(what the compiler says of a configuration's training step, the compiled text).

    Args:
        config: its batch size is that of all devices.
        devices: here, or of a topology.
        chip: of these devices, None of CPUs and GPUs.
        quick: let the compiler work less on speed: two to four times as fast, the memory within some percent.

    Raises:
        ValueError: the configuration cannot run on these devices.
    """
    check_division("batch_size", config.batch_size, len(devices), config.grad_accum_steps)
    mesh = make_mesh(config.mesh, devices)
    program = train_program(config, training_task(config, kind_of(config).NUM_CLASSES), mesh, STEPS_PER_EPOCH)
    batch = abstract_batch(config, mesh)
    state = _state_bytes(program)
    inputs = _shard_bytes(batch)
    started = time.monotonic()
    with _effort(-1.0 if quick else 0.0):
        traced = program.train_step.trace(program.abstract_state, batch, {})
        flops = count_flops(traced.jaxpr.jaxpr) / config.batch_size
        lowered, traced_at = traced.lower(), time.monotonic()
        compiled, refused = _compile(lowered, sum(state.values()) + inputs)
    step = Compiled(
        batch=config.batch_size,
        state=state,
        inputs=inputs,
        padding=0.0,
        temporaries=0.0,
        peak=0.0,
        limit=_memory_limit(devices, chip),
        fits=False,
        flops=flops,
        bytes_accessed=None,
        collectives={},
        seconds=(traced_at - started, time.monotonic() - traced_at),
    )
    arguments = sum(state.values()) + inputs
    if compiled is None:
        needed, limit = refused
        return dataclasses.replace(step, temporaries=needed - arguments, peak=needed, limit=limit), ""
    text, cost = compiled.as_text() or "", compiled.cost_analysis() or {}
    padding, temporaries = _memory(compiled.memory_analysis(), arguments)
    peak = arguments + padding + temporaries
    # Of one device's program, so its pictures are those of one device.
    accessed = None
    if "bytes accessed" in cost:
        accessed = cost["bytes accessed"] * loop_factor(text) / (config.batch_size / len(devices))
    step = dataclasses.replace(
        step,
        padding=padding,
        temporaries=temporaries,
        peak=peak,
        fits=step.limit is None or peak <= step.limit,
        bytes_accessed=accessed,
        collectives=collective_traffic(text, len(devices)),
    )
    return step, text


def abstract_batch(config: Config, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, types and shardings of a training batch."""
    shapes, sharding = kind_of(config).training_shapes(config), batch_sharding(mesh)
    return {
        name: jax.ShapeDtypeStruct((config.batch_size, *shape), dtype, sharding=sharding)
        for name, (shape, dtype) in shapes.items()
    }


def with_batch(config: Config, per_device: int, devices: int) -> Config:
    """The configuration with so many pictures a device, and groups for mixing that divide them."""
    batch = per_device * devices
    group = math.gcd(config.mix.group, batch // config.grad_accum_steps)
    return dataclasses.replace(config, batch_size=batch, mix=dataclasses.replace(config.mix, group=group))


def find_batch(
    config: Config, devices: Sequence[jax.Device], chip: Chip | None, *, start: int = 32
) -> Iterator[Compiled]:
    """Quick compilations on the way to the largest batch that fits; of those that fit the largest is the answer.

    Memory is close to a straight line in the batch, so each next try is where the line through the last two, the first
    being the state alone, meets the limit. The answer is exact to an eighth (see `_unit`): the search ends where a unit
    more does not fit, by a try or by the line. Sizes are counted in pictures of each of the `grad_accum_steps` parts,
    so that all of them can be cut into these.

    Args:
        config: its batch size is not used.
        devices: see `compile_step`.
        chip: see `compile_step`.
        start: pictures a device to begin with.

    Raises:
        ValueError: the memory of these devices is not known.
    """
    if _memory_limit(devices, chip) is None:
        raise ValueError("The largest batch cannot be found: the memory of these devices is not known.")
    peaks: dict[int, float] = {}
    parts = config.grad_accum_steps
    fits, refused, size = 0, math.inf, _round_down(max(start // parts, 1))
    while size:
        compiled, _ = compile_step(with_batch(config, size * parts, len(devices)), devices, chip, quick=True)
        yield compiled
        peaks |= {0: sum(compiled.state.values()), size: compiled.peak}
        fits, refused = (max(fits, size), refused) if compiled.fits else (fits, min(refused, size))
        size = _next_size(peaks, fits, refused, float(compiled.limit or 0))


def _unit(size: int) -> int:
    """Batches that are tried are multiples of this: the largest power of two that is an eighth of them or less."""
    return 2 ** ((size // 8).bit_length() - 1) if size >= 8 else 1


def _round_down(size: float | int) -> int:
    return int(size) // _unit(int(size)) * _unit(int(size))


def _next_size(peaks: Mapping[int, float], fits: int, refused: int | float, limit: float) -> int:
    """Where the line through the two largest peaks meets the limit, between what fits and what was refused.

    0 where nothing is left to try.
    """
    (low, a), (high, b) = sorted(peaks.items())[-2:]
    guess = low + (limit - a) * (high - low) / max(b - a, 1.0)
    if high == fits and guess < fits + _unit(fits):
        return 0
    most = refused - 1 if fits else refused // 2  # the state may be most of what was refused
    size = max(_round_down(min(guess, most, 8 * fits or most)), _round_down(min(fits + _unit(fits), most)))
    return size if size > fits else 0


@contextlib.contextmanager
def _effort(value: float) -> Iterator[None]:
    before = getattr(jax.config, _EFFORT)
    jax.config.update(_EFFORT, value)
    try:
        yield
    finally:
        jax.config.update(_EFFORT, before)


def _state_bytes(program: Program) -> dict[str, float]:
    state = program.abstract_state
    return {
        "parameters": _shard_bytes(state["params"]),
        "optimiser": _shard_bytes(state["opt_state"]),
        "EMA": _shard_bytes(state["ema"]),
        "statistics": _shard_bytes(state["batch_stats"]),
    }


def _shard_bytes(tree: Any) -> float:
    """Of what one device holds."""
    return float(
        sum(
            np.prod(leaf.sharding.shard_shape(leaf.shape), dtype=np.int64) * np.dtype(leaf.dtype).itemsize
            for leaf in jax.tree.leaves(tree)
        )
    )


def _compile(lowered: jax.stages.Lowered, arguments: float) -> tuple[jax.stages.Compiled | None, tuple[float, float]]:
    """The program, or None and (bytes needed, bytes there are) where the compiler finds too little memory."""
    try:
        return lowered.compile(), (0.0, 0.0)
    except jax.errors.JaxRuntimeError as error:
        for pattern, besides in ((_ALL_TOO_LARGE, 0.0), (_TEMPORARIES_TOO_LARGE, arguments)):
            if match := pattern.search(str(error)):
                return None, (float(match[1]) * _UNITS[match[2]] + besides, float(match[3]) * _UNITS[match[4]])
        raise


def _memory(stats: Any, arguments: float) -> tuple[float, float]:
    """(padding, temporaries) of a program, of which the compiler makes one block each, whatever is used at a time.

    Its own peak is of another kind: the arrays that are in use together, those in the chip's vector memory too. A
    program can have a peak of 15 MiB and no temporaries at all, or one of 472 MiB and temporaries of 578 MiB. It also
    takes programs whose temporaries exceed the chip's memory (RMT-S, 512 pictures on v5e: 17.3 of 15.75 GiB). Nobody
    here has run one, so these count as not fitting.

    Args:
        stats: of the compiler, None where it says nothing.
        arguments: bytes of state and batch without padding.
    """
    if stats is None:
        return 0.0, math.nan
    # Results lie where the state was given, but for the metrics.
    results = stats.output_size_in_bytes - stats.alias_size_in_bytes
    return stats.argument_size_in_bytes - arguments, float(stats.temp_size_in_bytes + results)


def _memory_limit(devices: Sequence[jax.Device], chip: Chip | None) -> float | None:
    """As a device of this machine says, else as it is known of the chip."""
    for device in devices:
        try:
            stats = device.memory_stats()
        except jax.errors.JaxRuntimeError:  # of a topology, or of another host
            continue
        if stats and "bytes_limit" in stats:
            return float(stats["bytes_limit"])
    return None if chip is None else chip.memory
