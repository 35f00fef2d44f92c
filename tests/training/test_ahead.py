"""The search for the largest batch, on a memory that grows with the batch."""

import dataclasses
from typing import Any

import jax
import pytest

from rmt_jax.training import ahead
from rmt_jax.training.ahead import Compiled, find_batch, with_batch
from rmt_jax.training.chips import CHIPS, GIB
from rmt_jax.training.config import Config, parse

NOTHING = Compiled(
    batch=0,
    state={"parameters": 1.0 * GIB},
    inputs=0.0,
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


@pytest.mark.parametrize(("each", "group"), [(128, 128), (48, 128), (3, 8), (1, 8)])
def test_groups_for_mixing_divide_the_batch(each: int, group: int) -> None:
    config = with_batch(parse({"mix": {"mixup": 0.8, "group": 128}}), each, 8)
    assert config.batch_size == 8 * each
    assert config.mix.group == group
