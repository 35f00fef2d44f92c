"""Schedule, weight decay, clipping and moving average; the recorded optimiser runs are in test_parity.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmt_jax.models import abstract_model, create_model, list_models
from rmt_jax.models.arrays import flat_paths
from rmt_jax.training.optimizer import (
    FROZEN_RULES,
    WEIGHT_DECAY_RULES,
    OptimizerConfig,
    make_optimizer,
    scale_layers,
    select,
    update_ema,
)
from rmt_jax.training.schedule import ScheduleConfig, cosine
from rmt_jax.training.state import split_model


def test_schedule_by_hand() -> None:
    rates = cosine(ScheduleConfig(warmup_epochs=2, warmup_lr=0.0, min_lr=0.0), peak=1.0, epochs=8)
    wave = 0.5 * (1 + np.cos(np.pi * np.arange(8) / 8))
    np.testing.assert_allclose(rates, [0, 0, 0.5, *wave[2:7]], atol=1e-15)


def test_schedule_without_warmup() -> None:
    rates = cosine(ScheduleConfig(warmup_epochs=0, min_lr=0.0), peak=1.0, epochs=4)
    np.testing.assert_allclose(rates, [1, 1, *(0.5 * (1 + np.cos(np.pi * np.array([1, 2]) / 4)))])


@pytest.mark.parametrize("name", list_models())
def test_kernels_and_layer_scale_decay_and_nothing_else(name: str) -> None:
    _, params, _ = split_model(abstract_model(lambda rngs: create_model(name, rngs=rngs)))
    mask = select(params, WEIGHT_DECAY_RULES)
    for (path, leaf), decays in zip(jax.tree.leaves_with_path(params), jax.tree.leaves(mask), strict=True):
        last = jax.tree_util.keystr(path[-1:], simple=True)
        assert decays == (leaf.ndim > 1 or last.startswith("gamma_")), path


def test_clipping_scales_the_gradient_to_the_norm() -> None:
    params = {"kernel": jnp.zeros(2)}
    seen = []
    for gradient in (np.array([3.0, 4.0]), np.array([30.0, 40.0])):
        optimizer = make_optimizer(OptimizerConfig(clip_norm=5.0, epsilon=1.0), 1.0)
        updates, _ = optimizer.update({"kernel": jnp.asarray(gradient, jnp.float32)}, optimizer.init(params), params)
        seen.append(updates["kernel"])
    np.testing.assert_allclose(seen[0], seen[1], rtol=1e-6)  # norms 5 and 50, both used at 5
    np.testing.assert_allclose(seen[0], [-3 / 4, -4 / 5], rtol=1e-5)  # Adam's first step: g / (|g| + epsilon)


def test_moving_average_by_hand() -> None:
    average = update_ema({"a": jnp.array([1.0])}, {"a": jnp.array([2.0])}, decay=0.75)
    np.testing.assert_allclose(average["a"], [1.25])


LAYERS = {  # of rmt_nano, two blocks in its third stage: 0 the stem, 1..5 the blocks, 6 the head
    "backbone/patch_embed/proj/0/kernel": 0,
    "backbone/layers/0/blocks/0/ffn/fc1/bias": 1,
    "backbone/layers/0/downsample/reduction/kernel": 1,
    "backbone/layers/1/blocks/0/retention/q_proj/kernel": 2,
    "backbone/layers/2/blocks/0/gamma_1": 3,
    "backbone/layers/2/blocks/1/ffn/fc2/kernel": 4,
    "backbone/layers/2/downsample/reduction/kernel": 4,
    "backbone/layers/3/blocks/0/retention/out_proj/bias": 5,
    "proj/kernel": 6,
    "norm/scale": 6,
    "head/kernel": 6,
}


def test_layer_decay_by_hand() -> None:
    model = abstract_model(lambda rngs: create_model("rmt_nano", rngs=rngs, layer_scale=(0.1,) * 4))
    params = jax.tree.map(lambda leaf: jnp.ones(()), split_model(model)[1])
    scaled = dict(flat_paths(scale_layers(params, 0.5)))
    assert LAYERS.keys() <= scaled.keys()
    for path, layer in LAYERS.items():
        assert scaled[path] == 0.5 ** (6 - layer), path
    assert {float(scale) for scale in scaled.values()} == {0.5**k for k in range(7)}


def test_layer_decay_scales_the_step_and_its_weight_decay() -> None:
    params = {"head": {"kernel": jnp.ones(2)}, "backbone": {"patch_embed": {"kernel": jnp.ones(2)}}}
    plain, decayed = (make_optimizer(OptimizerConfig(layer_decay=value), 1.0) for value in (1.0, 0.1))
    steps = [optimizer.update(params, optimizer.init(params), params)[0] for optimizer in (plain, decayed)]
    np.testing.assert_allclose(steps[1]["head"]["kernel"], steps[0]["head"]["kernel"])
    expected = 0.1 * steps[0]["backbone"]["patch_embed"]["kernel"]
    np.testing.assert_allclose(steps[1]["backbone"]["patch_embed"]["kernel"], expected, rtol=1e-6)


def test_frozen_parameters_stay_and_do_not_decay() -> None:
    params = {"head": {"kernel": jnp.ones(2)}, "proj": {"kernel": jnp.ones(2)}}
    optimizer = make_optimizer(OptimizerConfig(), 1.0, frozen_rules=FROZEN_RULES)
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    assert (np.asarray(updates["head"]["kernel"]) < 0).all()
    np.testing.assert_array_equal(updates["proj"]["kernel"], 0)


def test_impossible_layer_decay() -> None:
    with pytest.raises(ValueError, match=r"optimizer\.layer_decay=0\.0: expected 0 < layer_decay <= 1"):
        OptimizerConfig(layer_decay=0.0)
