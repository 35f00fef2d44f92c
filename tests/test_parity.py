"""Every number recorded from upstream, and proof that small mistakes are noticed."""

import dataclasses
import functools
from collections.abc import Iterator

import jax
import pytest

from rmt_jax.models import block, layers
from rmt_jax.ops import formulations
from rmt_jax.training.optimizer import OptimizerConfig
from tests import parity
from tests.compilation import QUICK_FORMULATIONS

# Larger than RMT-T and made of the same layers: compiled in the quick way.
LARGE = {"rmt_s inference", "rmt_s_star inference", "rmt_s training", "rmt_s_star training"}
SLOW = LARGE | {"trajectory"}


def failures(rows: Iterator[parity.Row]) -> list[parity.Row]:
    return [row for row in rows if not row.error <= row.tolerance]


@pytest.fixture(autouse=True, scope="module")
def asked_formulations() -> None:
    """None: the numbers of upstream are reached with those that users get, by all but the large ones."""


@pytest.mark.parametrize(
    "section",
    [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in parity.SECTIONS],
)
def test_parity(section: str) -> None:
    with formulations.asking(**QUICK_FORMULATIONS if section in LARGE else {}):
        rows = list(parity.SECTIONS[section]())
    assert rows
    assert failures(iter(rows)) == []


def test_no_decay_list_is_upstreams() -> None:
    assert parity.no_decay_keys() == set(parity.meta("trajectory_rmt_t")["no_decay"])


@pytest.mark.slow
def test_tanh_gelu_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block, "gelu", functools.partial(jax.nn.gelu, approximate=True))
    assert failures(parity.inference_rows("rmt_t"))


@pytest.mark.slow
def test_wrong_layer_norm_epsilon_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block, "LayerNorm", functools.partial(layers.LayerNorm, epsilon=1e-5))
    assert failures(parity.inference_rows("rmt_t"))


@pytest.mark.slow
def test_biased_running_variance_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def biased(self: layers.BatchNorm, x: jax.Array, valid: jax.Array | None = None) -> jax.Array:
        count, old = x.size // x.shape[-1], self.var[...]
        y = original(self, x, valid)
        self.var[...] = old + (self.var[...] - old) - 0.1 * x.var(axis=(0, 1, 2)) / (count - 1)
        return y

    original = layers.BatchNorm.__call__
    monkeypatch.setattr(layers.BatchNorm, "__call__", biased)
    assert [row.case for row in failures(parity.training_rows("rmt_t"))] == ["train: 4 BatchNorm buffers"]


@pytest.mark.parametrize("rows", [parity.optimizer_rows, pytest.param(parity.trajectory_rows, marks=pytest.mark.slow)])
@pytest.mark.parametrize("mistake", ["decay on everything", "beta2"])
def test_optimizer_mistakes_are_noticed(rows, mistake: str) -> None:
    if mistake == "beta2":
        assert failures(rows(dataclasses.replace(OptimizerConfig(), beta2=0.99)))
    else:
        assert failures(rows(dataclasses.replace(OptimizerConfig(), decay="all")))
