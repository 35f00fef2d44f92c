"""Schedule, weight decay, clipping and moving average; the recorded optimiser runs are in test_parity.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmt_jax.models import abstract_model, create_model, list_models
from rmt_jax.training.optimizer import WEIGHT_DECAY_RULES, OptimizerConfig, make_optimizer, select, update_ema
from rmt_jax.training.schedule import ScheduleConfig, learning_rates
from rmt_jax.training.state import split_model


def test_schedule_by_hand() -> None:
    rates = learning_rates(ScheduleConfig(warmup_epochs=2, warmup_lr=0.0, min_lr=0.0), peak=1.0, epochs=8)
    cosine = 0.5 * (1 + np.cos(np.pi * np.arange(8) / 8))
    np.testing.assert_allclose(rates, [0, 0, 0.5, *cosine[2:7]], atol=1e-15)


def test_schedule_without_warmup() -> None:
    rates = learning_rates(ScheduleConfig(warmup_epochs=0, min_lr=0.0), peak=1.0, epochs=4)
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
