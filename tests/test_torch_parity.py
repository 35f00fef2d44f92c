"""A ladder from single functions to whole training steps between this package and the PyTorch reference.

The reference is tests/torch_rmt.py, held to upstream's recorded numbers. Architectures, sizes, types, weights and
inputs are drawn by hypothesis. `tests.ladder` holds the rungs; here are the tolerances, and proof that mistakes
are noticed on the rung where they are made.
"""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import Phase, example, given, seed, settings

from rmt_jax.models import Classifier, RMTConfig, block, layers, rmt
from rmt_jax.ops import manhattan
from rmt_jax.training.optimizer import OptimizerConfig
from tests.ladder import training
from tests.ladder.case import OPTIMIZER, Case, Row
from tests.ladder.rungs import RUNGS

BFLOAT16 = float(jnp.finfo(jnp.bfloat16).eps)  # 2 ** -8: a result rounded once is off by half of it


@pytest.fixture(autouse=True, scope="module")
def asked_formulations() -> None:
    """None: those of users are held to PyTorch."""


class Tolerance(NamedTuple):
    """Largest error when we compute in float32, whichever type the reference has, and when we compute in bfloat16."""

    float32: float
    bfloat16: float


# In float32 only the order of sums differs, and sums are small: behind each tolerance stands the largest error of some
# hundred cases, of some forty of whole models. The rest is for processors that add up in another order. In bfloat16
# roundings add up like a random walk along the depth, and these narrow models average little of it away.
TOLERANCES = {
    "constant": Tolerance(3e-7, 3e-7),  # 1.1e-7: always float32
    "function": Tolerance(2e-6, 3 * BFLOAT16),  # 5.5e-7, 1.1 BFLOAT16
    "function gradient": Tolerance(1e-5, 8 * BFLOAT16),  # 2.2e-6, 3.1 BFLOAT16
    "part": Tolerance(2e-6, 10 * BFLOAT16),  # 5.4e-7, 4.3 BFLOAT16
    "model": Tolerance(2e-5, 30 * BFLOAT16),  # 4.9e-6, 15 BFLOAT16
    "loss": Tolerance(1e-5, 5 * BFLOAT16),  # 1.8e-6 after steps, which feel the gradients' rounding; 1.6 BFLOAT16
    "gradient": Tolerance(1e-4, 80 * BFLOAT16),  # 3.4e-5 of PyTorch's float32, 2.1e-5 of its float64; 50 BFLOAT16
    "zero gradient": Tolerance(2e-6, 20 * BFLOAT16),  # 3.4e-7, 7 BFLOAT16
    "statistic": Tolerance(2e-5, 20 * BFLOAT16),  # 4.5e-6 after steps, 9 BFLOAT16
    "weight": Tolerance(2e-3, 0),  # 6.1e-4: a moving average moves 1000 roundings of a weight
}

# How many cases are drawn after the plain one, and how many in the slow tests. Each compiles a program.
CASES = {
    "constants": (8, 25),
    "gelu": (12, 25),
    "depthwise": (10, 15),
    "rotary": (12, 25),
    "decomposed": (10, 15),
    "full": (10, 15),
    "batch_norm": (8, 15),
    "retention": (8, 12),
    "ffn": (8, 12),
    "block": (6, 10),
    "stage": (5, 8),
    "stem": (6, 10),
    "classifier": (2, 4),
    "backbone": (2, 4),
    "training": (0, 4),
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Sums in one order whatever the machine, and no waiting for a core that another process uses."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def failures(rung: str, case: Case) -> list[Row]:
    """What is further apart than the tolerance of its sort."""
    rows = list(RUNGS[rung].rows(case))
    assert rows
    return [row for row in rows if not row.error <= getattr(TOLERANCES[row.sort], case.dtype)]


PLAIN = RMTConfig(
    embed_dims=(12, 16, 16, 24),
    depths=(1, 1, 1, 1),
    num_heads=(2, 4, 2, 3),
    mlp_ratios=(2, 2, 3, 1),
    decay_spans=(4, 4, 6, 6),
    layer_scale=(0.5, None, None, 0.5),
    proj_dim=10,
    num_classes=5,
)


def plain_case(rung: str) -> Case:
    """The case that every rung begins with, and that the mistakes are shown on."""
    starred = dataclasses.replace(PLAIN, aux_head=True, aux_tap="proj")
    if rung == "backbone":  # small maps, whose norms feel their epsilon
        config = dataclasses.replace(PLAIN, extra_norms=True, layer_scale=(0.02,) * 4)
        return Case(config, (1, 33, 48), scale=0.1, headless=True)
    if rung in ("stem", "classifier", "training"):
        return Case(starred, (2, 33, 48), optimizer=dataclasses.replace(OPTIMIZER, weight_decay=0.5))
    # Small inputs feel LayerNorm's epsilon; running statistics begin near 1 and feel inputs as large as that.
    return Case(starred, (2, 6, 8), scale=1.0 if rung == "batch_norm" else 0.1)


@pytest.mark.parametrize(
    ("rung", "slow"),
    [
        pytest.param(rung, slow, marks=[pytest.mark.slow] * slow)
        for slow in (False, True)
        for rung in RUNGS
        if slow or rung != "training"
    ],
)
def test_rung(rung: str, slow: bool) -> None:
    # Nothing is shrunk: that would compile hundreds of programs. The plain case goes with the mistakes shown on it.
    phases = (Phase.explicit, Phase.generate) if rung == "training" else (Phase.generate,)

    @seed(zlib.crc32(f"{rung}, slow={slow}".encode()))
    @settings(max_examples=CASES[rung][slow], deadline=None, derandomize=True, phases=phases)
    @example(plain_case(rung))
    @given(RUNGS[rung].cases)
    def check(case: Case) -> None:
        assert failures(rung, case) == []

    check()


# --- Mistakes ---


def wrap(module: Any, name: str, change: Callable[..., Any]) -> Callable[[pytest.MonkeyPatch], None]:
    """Replaces a function by one that gets the original before its arguments."""
    original = getattr(module, name)

    @functools.wraps(original)
    def changed(*args: Any, **options: Any) -> Any:
        return change(original, *args, **options)

    return lambda monkeypatch: monkeypatch.setattr(module, name, changed)


def unflipped_backward() -> Callable[[pytest.MonkeyPatch], None]:
    """The backward pass convolves with the kernel as it is."""

    @functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
    def conv(x: jax.Array, kernel: jax.Array, bias: jax.Array, residual: bool = False) -> jax.Array:
        return original(x, kernel, bias, residual=residual)

    def backward(residual: bool, saved: tuple[jax.Array, ...], dy: jax.Array) -> tuple[jax.Array, ...]:
        _, kernel, bias = saved
        unflipped = original(dy, kernel, jnp.zeros_like(bias), residual=residual)
        return unflipped, *jax.vjp(functools.partial(original, residual=residual), *saved)[1](dy)[1:]

    original = layers.depthwise_conv2d
    conv.defvjp(lambda *arguments: (conv(*arguments), arguments[:3]), backward)
    return lambda monkeypatch: monkeypatch.setattr(layers, "depthwise_conv2d", conv)


def swapped_axes(original: Callable[..., jax.Array], q: Any, k: Any, v: Any, width: Any, height: Any) -> jax.Array:
    """Height first."""
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    return original(q, k, v, height, width).swapaxes(1, 2)


def phases_of_columns(original: Callable[..., np.ndarray], height: int, width: int, dim: int) -> np.ndarray:
    """As if every row began at 0."""
    return np.broadcast_to(original(1, width, dim), (height, width, dim // 2))


def unscaled_keys(original: Callable[..., Any], self: block.Retention, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    q, k = original(self, x)
    return q, k * (k.shape[-1] // len(self.heads.log_rates)) ** 0.5


def no_inner_residual(original: Callable[..., Any], self: block.FFN, x: jax.Array) -> jax.Array:
    return self.fc2(self.dwconv(block.gelu(self.fc1(x))))


def same_padding(original: Callable[..., Any], *args: Any, **options: Any) -> Any:
    conv = original(*args, **options)
    conv.padding = "SAME"
    return conv


def gelu_at_the_end(original: Callable[..., Any], self: rmt.Stem, x: jax.Array) -> jax.Array:
    return rmt.gelu(original(self, x))


def tap_after_norm(original: Callable[..., Any], self: Classifier, x: jax.Array) -> dict[str, jax.Array]:
    taps = original(self, x)
    return taps | {"proj": taps["norm"]}


def biased_variance(
    original: Callable[..., Any], self: layers.BatchNorm, x: jax.Array, valid: jax.Array | None = None
) -> jax.Array:
    count = x.size // x.shape[-1]
    y = original(self, x, valid)
    if not self.use_running_average:
        self.var[...] -= self.momentum * x.var(axis=(0, 1, 2)) / (count - 1)
    return y


def constant_statistics(
    original: Callable[..., Any], self: layers.BatchNorm, x: jax.Array, valid: jax.Array | None = None
) -> jax.Array:
    """The backward pass takes the batch's mean and variance for constants."""
    y = original(self, x, valid)
    if self.use_running_average:
        return y
    mean, var = (jax.lax.stop_gradient(f(x, axis=(0, 1, 2))) for f in (jnp.mean, jnp.var))
    return (x - mean) * jax.lax.rsqrt(var + self.epsilon) * self.scale[...] + self.bias[...]


def decay_of_everything(original: Callable[..., Any], config: OptimizerConfig, *args: Any) -> Any:
    return original(dataclasses.replace(config, decay="all"), *args)


def reversed_average(original: Callable[..., Any], ema: Any, new: Any, decay: float) -> Any:
    return original(ema, new, 1 - decay)


CONSEQUENCES = {"weight", "statistic", "loss"}  # of wrong steps; the first outputs, loss and gradients are right

# Each with its rung, what must be noticed there, and how it is made.
MISTAKES: dict[str, tuple[str, set[str], Callable[[pytest.MonkeyPatch], None]]] = {
    "decay of the neighbouring head": (
        "constants",
        {"constant"},
        wrap(block, "log_decay_rates", lambda original, *args: jnp.roll(original(*args), 1)),
    ),
    "tanh GELU": (
        "gelu",
        {"function", "function gradient"},
        wrap(rmt, "gelu", lambda _, x: jax.nn.gelu(x, approximate=True)),
    ),
    "kernel upside down": (
        "depthwise",
        {"function", "function gradient"},
        wrap(
            layers,
            "depthwise_conv2d",
            lambda original, x, kernel, *rest, **options: original(x, kernel[::-1], *rest, **options),
        ),
    ),
    "backward pass without the flip": ("depthwise", {"function gradient"}, unflipped_backward()),
    "rotary phase by column only": (
        "rotary",
        {"function", "function gradient"},
        wrap(manhattan, "rotary_phase", phases_of_columns),
    ),
    "height before width": (
        "decomposed",
        {"function", "function gradient"},
        wrap(manhattan, "decomposed_retention", swapped_axes),
    ),
    "decay left out": (
        "full",
        {"function", "function gradient"},
        wrap(manhattan, "full_retention", lambda original, q, k, v, decay: original(q, k, v, 0 * decay)),
    ),
    "biased running variance": ("batch_norm", {"statistic"}, wrap(layers.BatchNorm, "__call__", biased_variance)),
    "unscaled keys": ("retention", {"part"}, wrap(block.Retention, "_queries_and_keys", unscaled_keys)),
    "no residual inside the FFN": ("ffn", {"part"}, wrap(block.FFN, "__call__", no_inner_residual)),
    "LayerNorm epsilon 1e-5": (
        "block",
        {"part"},
        lambda monkeypatch: monkeypatch.setattr(block, "LayerNorm", functools.partial(layers.LayerNorm, epsilon=1e-5)),
    ),
    "layer scale left out": ("block", {"part"}, wrap(block, "_scale", lambda _, gamma, x: x)),
    "padding SAME at stride 2": ("stage", {"part"}, wrap(rmt, "conv3x3", same_padding)),
    "GELU after the last BatchNorm": ("stem", {"part"}, wrap(rmt.Stem, "__call__", gelu_at_the_end)),
    "auxiliary head one layer later": ("classifier", {"model"}, wrap(Classifier, "taps", tap_after_norm)),
    "extra norms' epsilon 1e-6": (
        "backbone",
        {"model"},
        lambda monkeypatch: monkeypatch.setattr(rmt, "EXTRA_NORM_EPSILON", 1e-6),
    ),
    "batch statistics constant backwards": (
        "training",
        {"gradient", "zero gradient", *CONSEQUENCES},
        wrap(layers.BatchNorm, "__call__", constant_statistics),
    ),
    "decay of everything": ("training", CONSEQUENCES, wrap(training, "make_optimizer", decay_of_everything)),
    "average the wrong way round": (
        "training",
        {"weight", "statistic"},
        wrap(training, "update_ema", reversed_average),
    ),
}


@pytest.mark.parametrize(
    "mistake",
    [pytest.param(name, marks=[pytest.mark.slow] * (rung == "training")) for name, (rung, _, _) in MISTAKES.items()],
)
def test_mistake_is_noticed_on_its_rung(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else fails there, and the rung below holds."""
    rung, sorts, make = MISTAKES[mistake]
    make(monkeypatch)
    below = dict(zip(list(RUNGS)[1:], RUNGS, strict=False)).get(rung)
    assert below is None or failures(below, plain_case(below)) == []
    assert {row.sort for row in failures(rung, plain_case(rung))} == sorts
