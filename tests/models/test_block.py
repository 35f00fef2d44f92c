"""The block and its parts against float64 numpy, step by step."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rmt_jax.models.block import FFN, Block, Retention
from rmt_jax.models.layers import drop_path
from rmt_jax.ops import log_decay_rates
from tests.models.small import flat, small
from tests.ops import naive

HEIGHT, WIDTH = 3, 4  # not square: swapped axes would show


def block(decomposed: bool = True, layer_scale: float | None = None) -> Block:
    """The last stage's block: 16 channels in two heads."""
    model = small(decomposed=(decomposed,) * 4, layer_scale=(layer_scale,) * 4)
    return model.backbone.layers[3].blocks[0]


def maps(batch: int = 2, channels: int = 16) -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).standard_normal((batch, HEIGHT, WIDTH, channels)), jnp.float32)


def weights(module: nnx.Module) -> dict[str, np.ndarray]:
    state = nnx.to_pure_dict(nnx.state(module, nnx.Param))
    return {path: np.asarray(leaf, np.float64) for path, leaf in flat(state).items()}


def linear(w: dict[str, np.ndarray], name: str, x: np.ndarray) -> np.ndarray:
    return x @ w[f"{name}/kernel"] + w[f"{name}/bias"]


def depthwise(w: dict[str, np.ndarray], name: str, x: np.ndarray) -> np.ndarray:
    return naive.depthwise_conv2d(x, w[f"{name}/kernel"]) + w[f"{name}/bias"]


def layer_norm(w: dict[str, np.ndarray], name: str, x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(axis=-1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-6)
    return normed * w[f"{name}/scale"] + w[f"{name}/bias"]


def retention(w: dict[str, np.ndarray], x: np.ndarray, decomposed: bool, prefix: str = "") -> np.ndarray:
    """Two heads with the last stage's span of 6."""
    q, k, v = (linear(w, f"{prefix}{name}_proj", x) for name in "qkv")
    heads = [y.reshape(*x.shape[:3], 2, -1) for y in (q, k / math.sqrt(x.shape[-1] // 2), v)]
    rates = naive.log_decay_rates(2, 2, 6)
    attend = naive.decomposed if decomposed else naive.full
    y = np.stack([attend(naive.rotate(q), naive.rotate(k), v, rates) for q, k, v in zip(*heads, strict=True)])
    return linear(w, f"{prefix}out_proj", y.reshape(x.shape) + depthwise(w, f"{prefix}lepe", v))


def ffn(w: dict[str, np.ndarray], x: np.ndarray, prefix: str = "") -> np.ndarray:
    h = linear(w, f"{prefix}fc1", x)
    h = h * 0.5 * (1 + np.vectorize(math.erf)(h / math.sqrt(2)))
    return linear(w, f"{prefix}fc2", h + depthwise(w, f"{prefix}dwconv", h))


def apply(module: nnx.Module, x: jax.Array) -> jax.Array:
    return jax.jit(lambda module, x: module(x))(module, x)


@pytest.mark.parametrize("decomposed", [True, False])
def test_retention(decomposed: bool) -> None:
    module: Retention = block(decomposed).retention
    expected = retention(weights(module), np.asarray(maps(), np.float64), decomposed)
    np.testing.assert_allclose(apply(module, maps()), expected, rtol=1e-5, atol=5e-6)


def test_decay_span_and_kind_of_the_stage_are_used() -> None:
    """The block is built from the entries of its own stage."""
    model = small("rmt_t")
    stages = [stage.blocks[0].retention for stage in model.backbone.layers]
    assert [stage.heads.decomposed for stage in stages] == [True, True, False, False]
    heads = model.config.num_heads
    rates = [log_decay_rates(count, 2, span).tolist() for count, span in zip(heads, [4, 4, 6, 6], strict=True)]
    assert [list(stage.heads.log_rates) for stage in stages] == rates


def test_ffn() -> None:
    module: FFN = block().ffn
    assert module.fc1.kernel.shape == (16, 32)
    expected = ffn(weights(module), np.asarray(maps(), np.float64))
    np.testing.assert_allclose(apply(module, maps()), expected, rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("layer_scale", [None, 0.1])
def test_block_adds_its_three_branches_in_order(layer_scale: float | None) -> None:
    module = block(layer_scale=layer_scale)
    w = weights(module)
    gammas = w.get("gamma_1", 1.0), w.get("gamma_2", 1.0)
    assert (layer_scale is None) == ("gamma_1" not in w) == ("gamma_2" not in w)
    x = np.asarray(maps(), np.float64)
    x = x + depthwise(w, "pos", x)
    x = x + gammas[0] * retention(w, layer_norm(w, "retention_layer_norm", x), True, "retention/")
    x = x + gammas[1] * ffn(w, layer_norm(w, "final_layer_norm", x), "ffn/")
    np.testing.assert_allclose(apply(module, maps()), x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("gamma", ["gamma_1", "gamma_2"])
def test_gamma_of_zero_leaves_its_branch_out(gamma: str) -> None:
    module = block(layer_scale=0.1)
    getattr(module, gamma)[...] = jnp.zeros(16)
    w = weights(module)
    x = np.asarray(maps(), np.float64)
    x = x + depthwise(w, "pos", x)
    if gamma == "gamma_2":
        x = x + w["gamma_1"] * retention(w, layer_norm(w, "retention_layer_norm", x), True, "retention/")
    else:
        x = x + w["gamma_2"] * ffn(w, layer_norm(w, "final_layer_norm", x), "ffn/")
    np.testing.assert_allclose(apply(module, maps()), x, rtol=1e-5, atol=1e-5)


def test_drop_path_drops_each_branch_for_itself() -> None:
    """At rate 1/2: a sample keeps both branches at twice the size, one, the other, or none."""
    module = block()
    batch = 64
    x = jnp.repeat(maps(1), batch, axis=0)
    (keep,) = drop_path(jax.random.split(jax.random.key(0), 1), jnp.asarray([0.5]), batch)
    y = np.asarray(jax.jit(lambda module, x: module(x, keep))(module, x))

    w, start = weights(module), np.asarray(maps(1), np.float64)
    start = start + depthwise(w, "pos", start)
    outcomes = []
    for first in (0, 2):
        middle = start + first * retention(w, layer_norm(w, "retention_layer_norm", start), True, "retention/")
        outcomes += [middle + second * ffn(w, layer_norm(w, "final_layer_norm", middle), "ffn/") for second in (0, 2)]
    errors = np.abs(y[:, None] - np.concatenate(outcomes)[None]).max(axis=(2, 3, 4))
    assert (errors.min(axis=1) < 2e-5).all()
    counts = np.bincount(errors.argmin(axis=1), minlength=4)
    assert (counts > 4).all()  # 16 expected of each, standard deviation 3.5
