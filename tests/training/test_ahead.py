"""The search for the largest batch, on a memory that grows with the batch; memory as devices and compiler tell it."""

import dataclasses
import types
from typing import Any
from unittest import mock

import jax
import pytest

from rmt_jax.cli.compile import step_time, step_times
from rmt_jax.training import ahead
from rmt_jax.training.ahead import Compiled, compile_step, find_batch, with_batch
from rmt_jax.training.chips import CHIPS, GIB, chip_of
from rmt_jax.training.config import Config, parse
from rmt_jax.training.cost import BETWEEN_SLICES, Traffic

NOTHING = Compiled(
    batch=0,
    state={"parameters": 1.0 * GIB},
    inputs=0.0,
    padding=0.0,
    temporaries=0.0,
    peak=0.0,
    limit=16.0 * GIB,
    fits=True,
    flops=0.0,
    bytes_accessed=None,
    collectives={},
    seconds=(0.0, 0.0),
)


@pytest.mark.parametrize("largest", [0, 1, 5, 8, 31, 32, 100, 250, 1000])
@pytest.mark.parametrize("start", [8, 32, 256])
def test_search(largest: int, start: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Peaks of a straight line with a bend, as padding makes them; few tries, and the answer within the promise."""

    def compile_step(config: Config, devices: Any, chip: Any, *, quick: bool) -> tuple[Compiled, str]:
        assert quick
        size = config.batch_size // len(devices)
        bend = 1.02 if size % 16 else 1.0
        peak = 16.0 * GIB * (0.1 + 0.9 * bend * size / (largest + 0.5))
        compiled = dataclasses.replace(NOTHING, batch=config.batch_size, peak=peak, fits=size <= largest)
        return compiled, ""

    monkeypatch.setattr(ahead, "compile_step", compile_step)
    tried = list(find_batch(Config(), jax.devices(), CHIPS["v5e"], start=start))
    found = max((step.batch // 8 for step in tried if step.fits), default=0)
    assert found <= largest
    assert largest - found <= largest / 8
    assert len(tried) <= 12


@pytest.mark.parametrize(("largest", "parts"), [(100, 3), (31, 3), (20, 16)])
def test_batches_that_are_tried_can_be_cut_into_parts(
    largest: int, parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compile_step(config: Config, devices: Any, chip: Any, *, quick: bool) -> tuple[Compiled, str]:
        size = config.batch_size // len(devices)
        assert size % parts == 0
        peak = 16.0 * GIB * (0.1 + 0.9 * size / (largest + 0.5))
        return dataclasses.replace(NOTHING, batch=config.batch_size, peak=peak, fits=size <= largest), ""

    monkeypatch.setattr(ahead, "compile_step", compile_step)
    tried = list(find_batch(Config(grad_accum_steps=parts, batch_size=48), jax.devices(), CHIPS["v5e"]))
    found = max(step.batch // 8 for step in tried if step.fits)
    assert largest - found < max(parts, largest / 8)


@pytest.mark.parametrize(
    ("batch", "parts", "message"),
    [
        (255, 1, r"batch_size=255 cannot be divided over 8 device\(s\). Use 248 or 256."),
        (2048, 512, r"over 8 device\(s\) x grad_accum_steps=512. Use 4096."),
    ],
)
def test_batches_that_training_refuses(batch: int, parts: int, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In training's words, and before anything is traced."""
    monkeypatch.setattr(ahead, "train_program", None)
    config = Config(batch_size=batch, grad_accum_steps=parts)
    with pytest.raises(ValueError, match=message):
        compile_step(config, jax.devices(), None)


def test_a_peak_is_what_the_compiler_takes_and_not_what_is_used_at_a_time() -> None:
    """The figures of a small program for two slices of v5e, whose temporaries are more than the compiler's peak."""
    stats = types.SimpleNamespace(
        argument_size_in_bytes=2492416,
        output_size_in_bytes=2398208,
        alias_size_in_bytes=2393600,
        temp_size_in_bytes=23805952,
        peak_memory_in_bytes=11134976,
    )
    assert ahead._memory(stats, 522600.0) == (1969816.0, 23810560.0)


def device(kind: str, stats: dict[str, int] | Exception | None) -> Any:
    """One that says this of its memory."""
    return mock.Mock(spec=jax.Device, device_kind=kind, memory_stats=mock.Mock(side_effect=[stats]))


ELSEWHERE = jax.errors.JaxRuntimeError("INVALID_ARGUMENT: MemoryStats is only supported for addressable PjRt devices.")


@pytest.mark.parametrize(
    ("kind", "stats", "chip", "limit"),
    [
        ("TPU v5 lite", [ELSEWHERE, None, {}, {"bytes_limit": 17 * 10**9}], "v5e", 17e9),
        ("TPU v4", [ELSEWHERE], "v4", 30.75 * GIB),
        ("TPU v5", [{}], "v5p", 95.74 * GIB),
        ("TPU v6 lite", [None], "v6e", 31.25 * GIB),
        ("NVIDIA H100", [{"bytes_limit": 80 * 10**9}], None, 80e9),
        ("cpu", [None], None, None),
    ],
)
def test_the_memory_and_the_chip_of_this_machine(
    kind: str, stats: list[Any], chip: str | None, limit: float | None
) -> None:
    devices = [device(kind, one) for one in stats]
    found = chip_of(devices)
    assert (None if found is None else found.name) == chip
    assert ahead._memory_limit(devices, found) == limit


def test_a_step_of_several_slices_waits_for_the_network_too() -> None:
    collectives = {BETWEEN_SLICES: Traffic(1, 3_125_000_000), "all-reduce": Traffic(1, 200_000_000_000)}
    compiled = dataclasses.replace(NOTHING, flops=197e12, bytes_accessed=1.0, collectives=collectives)
    assert step_times(compiled, 1, CHIPS["v5e"])[BETWEEN_SLICES] == 1
    assert step_time(compiled, 1, CHIPS["v5e"]) == pytest.approx(3)
    assert step_time(compiled, 1, CHIPS["v4"]) is None  # how fast is not documented
    alone = dataclasses.replace(compiled, collectives={"all-reduce": collectives["all-reduce"]})
    assert step_time(alone, 1, CHIPS["v5e"]) == pytest.approx(2)
    assert step_time(alone, 1, CHIPS["v4"]) is not None


@pytest.mark.parametrize(("each", "group"), [(128, 128), (48, 128), (3, 8), (1, 8)])
def test_groups_for_mixing_divide_the_batch(each: int, group: int) -> None:
    config = with_batch(parse({"mix": {"mixup": 0.8, "group": 128}}), each, 8)
    assert config.batch_size == 8 * each
    assert config.mix.group == group
