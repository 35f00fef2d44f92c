"""One optimiser step: pure, the same on any mesh, and with gradients gathered in parts."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from rmt_jax.models import abstract_model, variant
from rmt_jax.models.arrays import flat_paths
from rmt_jax.tasks import Classification, MixConfig
from rmt_jax.training.optimizer import FROZEN_RULES, OptimizerConfig, make_optimizer
from rmt_jax.training.program import place_model
from rmt_jax.training.sharding import MeshConfig, batch_sharding, make_mesh, replicated
from rmt_jax.training.state import State, _deal, init_state, make_train_step, split_model
from tests.training.conftest import TINY

# Adam moves a parameter by the learning rate whatever the size of its gradient, so parameters whose gradient is
# rounding noise would be compared at the size of the step. Epsilon 1 makes the step proportional to the gradient.
OPTIMIZER = make_optimizer(OptimizerConfig(epsilon=1.0), lambda count: jnp.where(count < 100, 0.1, 0.0))


def task(drop_path: float = 0.0, **recipe: Any) -> Classification:
    model = variant("rmt_nano", **TINY | {"depths": (1, 1, 2, 1)}, num_classes=10, drop_path=drop_path, scan=True)
    half = (0.5, 0.5, 0.5)
    return Classification(model=model, dtype="float32", mean=half, std=half, label_smoothing=0.1, **recipe)


def mixing_task() -> Classification:
    return task(drop_path=0.3, erasing=0.5, mix=MixConfig(mixup=0.8, cutmix=1.0, group=4))


def batch(size: int, seed: int = 0) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    return {
        "image": jnp.asarray(rng.integers(0, 256, (size, 32, 32, 3)), jnp.uint8),
        "label": jnp.asarray(rng.integers(0, 10, size), jnp.int32),
    }


def fresh_state(task: Classification) -> State:
    _, params, batch_stats = split_model(task.init_model(nnx.Rngs(0)))
    return init_state(params, batch_stats, OPTIMIZER)


@functools.cache
def compiled_step(task: Classification, mesh: MeshConfig | None, grad_accum_steps: int) -> tuple[Callable, Any]:
    """The jitted step and where its state belongs: on a mesh over all devices, or on one device."""
    model, gather, place = abstract_model(task.init_model), None, jax.devices()[0]
    shardings: dict[str, Any] = {}
    if mesh is not None:
        devices = make_mesh(mesh)
        placement, gather = place_model(model, devices, mesh.min_split, jnp.float32)
        place = placement.shardings(fresh_state(task))
        shardings = {
            "in_shardings": (place, batch_sharding(devices), replicated(devices)),
            "out_shardings": (place, replicated(devices)),
        }
    graph = split_model(model)[0]
    step = make_train_step(
        task, graph, OPTIMIZER, seed=0, ema_decay=0.9, grad_accum_steps=grad_accum_steps, gather=gather
    )
    return jax.jit(step, donate_argnums=() if mesh is None else 0, **shardings), place


def run(
    task: Classification,
    batches: list[dict[str, jax.Array]],
    mesh: MeshConfig | None = None,
    grad_accum_steps: int = 1,
) -> tuple[State, list[float]]:
    """Final state and losses of one step for each batch."""
    step, place = compiled_step(task, mesh, grad_accum_steps)
    state, losses = jax.device_put(fresh_state(task), place), []
    for item in batches:
        state, metrics = step(state, item, {})
        losses.append(float(metrics["loss"]))
    return jax.device_get(state), losses


def assert_close(ours: Any, expected: Any, rtol: float = 1e-5) -> None:
    """Every array to rtol of its own largest magnitude, or of 1."""
    for (path, a), b in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(expected), strict=True):
        scale = max(1.0, float(np.max(np.abs(b))))
        np.testing.assert_allclose(a, b, rtol=0, atol=rtol * scale, err_msg=jax.tree_util.keystr(path))


@pytest.fixture(scope="module")
def one_device() -> tuple[State, list[float]]:
    return run(mixing_task(), [batch(16, seed) for seed in range(3)])


@pytest.mark.parametrize(
    ("mesh", "parts"),
    [
        pytest.param(MeshConfig(2, 4, min_split=64), 1, id="2x4"),
        pytest.param(MeshConfig(8, 1), 2, id="8x1 in two parts", marks=pytest.mark.slow),
    ],
)
def test_same_numbers_on_every_mesh(mesh: MeshConfig, parts: int) -> None:
    """With drop path, erasing, mixing, BatchNorm and the moving average, split weights and accumulation."""
    batches = [batch(16, seed) for seed in range(3)]
    expected, expected_losses = run(mixing_task(), batches, grad_accum_steps=parts)
    state, losses = run(mixing_task(), batches, mesh, grad_accum_steps=parts)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    assert_close(state, expected)
    place = compiled_step(mixing_task(), mesh, parts)[1]
    split = sum(not sharding.is_fully_replicated for sharding in jax.tree.leaves(place))
    assert split > 100 if mesh.fsdp > 1 else split == 0


@pytest.mark.slow
def test_erasing_and_mixing_take_effect(one_device: tuple[State, list[float]]) -> None:
    _, plain = run(task(drop_path=0.3), [batch(16, 0)])
    assert abs(plain[0] - one_device[1][0]) > 1e-3


def test_same_seed_same_bits(one_device: tuple[State, list[float]]) -> None:
    state, losses = run(mixing_task(), [batch(16, seed) for seed in range(3)])
    assert losses == one_device[1]
    jax.tree.map(np.testing.assert_array_equal, state, one_device[0])


def test_accumulated_gradients_are_the_mean_of_the_parts() -> None:
    # Two equal parts: each sees the BatchNorm statistics that the whole has, so one step must move the same.
    half = batch(8)
    twice = jax.tree.map(lambda x: jnp.repeat(x, 2, axis=0), half)
    in_parts, losses = run(task(), [twice], grad_accum_steps=2)
    whole, expected = run(task(), [half])
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    assert_close(in_parts["params"], whole["params"])


def test_accumulation_moves_batch_norm_once_for_each_part() -> None:
    half = batch(8)
    twice = jax.tree.map(lambda x: jnp.repeat(x, 2, axis=0), half)
    in_parts, _ = run(task(), [twice], grad_accum_steps=2)
    start = fresh_state(task())["batch_stats"]["backbone"]["patch_embed"]["proj"][1]["mean"]
    once = run(task(), [half])[0]["batch_stats"]["backbone"]["patch_embed"]["proj"][1]["mean"]
    moved = in_parts["batch_stats"]["backbone"]["patch_embed"]["proj"][1]["mean"]
    np.testing.assert_allclose(moved - start, 1.9 * (once - start), rtol=1e-4)  # 1 - 0.9^2 = 1.9 * (1 - 0.9)


def test_mix_tokens_groups_stay_together_in_parts() -> None:
    """Dealt out one sample at a time, as otherwise, partners would be torn apart."""
    x = jnp.arange(16)
    np.testing.assert_array_equal(_deal(x, 2, together=1), [x[::2], x[1::2]])
    np.testing.assert_array_equal(_deal(x, 2, together=4), [[0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15]])
    boxes = jnp.arange(16).reshape(4, 4)  # one for each group of four
    np.testing.assert_array_equal(_deal(boxes, 2, together=1), [boxes[::2], boxes[1::2]])


def test_a_linear_probe_moves_the_head_alone() -> None:
    small = task(drop_path=0.3)
    model = small.init_model(nnx.Rngs(0))
    model.freeze_backbone()
    graph, params, batch_stats = split_model(model)
    optimizer = make_optimizer(OptimizerConfig(), 0.1, frozen_rules=FROZEN_RULES)
    start = init_state(params, batch_stats, optimizer)
    step = jax.jit(make_train_step(small, graph, optimizer, seed=0, ema_decay=0.9, frozen_rules=FROZEN_RULES))
    state, _ = step(start, batch(8), {})
    for path, before in flat_paths({"params": params, "batch_stats": batch_stats}):
        after = dict(flat_paths({"params": state["params"], "batch_stats": state["batch_stats"]}))[path]
        assert np.array_equal(before, after) == (not path.startswith("params/head/")), path


def test_moving_average_follows_parameters_and_statistics() -> None:
    start = fresh_state(task())
    state, _ = run(task(), [batch(8)])
    for part in ("params", "batch_stats"):
        expected = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, jax.device_get(start[part]), state[part])
        assert_close(state["ema"][part], expected, rtol=1e-6)


def schedule_count(state: State) -> int:
    [count] = [part.count for part in state["opt_state"] if isinstance(part, optax.ScaleByScheduleState)]
    return int(count)


def test_a_step_that_is_not_finite_moves_the_counts_of_steps_alone() -> None:
    """An infinite weight makes the loss NaN; the step after it has the learning rate that it would have had anyway."""
    step, _ = compiled_step(task(), None, 1)
    start = jax.device_get(step(fresh_state(task()), batch(8), {})[0])
    start["params"]["head"]["bias"] = np.full_like(start["params"]["head"]["bias"], np.inf)
    state, metrics = step(start, batch(8, seed=1), {})
    assert not np.isfinite(metrics["loss"])
    assert metrics["skipped"] == 1.0
    assert (int(state["step"]), schedule_count(state)) == (2, 2)
    assert int(state["opt_state"][0].count) == 1  # Adam's correction of its bias goes by its own moves
    for part in ("params", "batch_stats", "ema"):
        jax.tree.map(np.testing.assert_array_equal, state[part], start[part])
    for moment in ("mu", "nu"):
        ours, before = (getattr(tree["opt_state"][0], moment) for tree in (state, start))
        jax.tree.map(np.testing.assert_array_equal, ours, before)


def test_a_finite_step_is_not_skipped() -> None:
    step, _ = compiled_step(task(), None, 1)
    state, metrics = step(fresh_state(task()), batch(8), {})
    assert metrics["skipped"] == 0.0
    assert (int(state["step"]), schedule_count(state), int(state["opt_state"][0].count)) == (1, 1, 1)


@pytest.mark.slow
def test_one_part_that_is_not_finite_skips_the_whole_step() -> None:
    bright = dataclasses.replace(
        task(), mean=(0.0, 0.0, 0.0), std=(1e-37, 1e-37, 1e-37)
    )  # anything but black overflows
    step, _ = compiled_step(bright, None, 2)
    black = batch(16) | {"image": jnp.zeros((16, 32, 32, 3), jnp.uint8)}
    for row in (0, 1):  # one in each part
        state, metrics = step(fresh_state(bright), black | {"image": black["image"].at[row].set(255)}, {})
        assert metrics["skipped"] == 1.0
        for part in ("params", "batch_stats"):
            jax.tree.map(np.testing.assert_array_equal, state[part], fresh_state(bright)[part])
    assert step(fresh_state(bright), black, {})[1]["skipped"] == 0.0
