"""Meshes, what is split over them, and the collectives that the compiled step makes of it."""

import collections
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rmt_jax.models import Remat, abstract_model, block_loop, create_model
from rmt_jax.ops import clear, formulations
from rmt_jax.training.chips import open_topology
from rmt_jax.training.config import Config, parse
from rmt_jax.training.describe import describe_placement
from rmt_jax.training.program import Program, keep_to_devices, train_program, training_task, with_sharding
from rmt_jax.training.sharding import (
    MeshConfig,
    PerDevice,
    Placement,
    batch_sharding,
    formulations_for,
    make_mesh,
    replicated,
)
from tests.models.small import Tree, small
from tests.training.conftest import TINY

STATE: dict[str, Any] = {
    "params": {
        "a": {"kernel": jnp.zeros((6, 80)), "bias": jnp.zeros(800)},
        "b": {"kernel": jnp.zeros((33, 15))},
        "c": {"kernel": jnp.zeros((8, 8))},
    }
}


@pytest.fixture(autouse=True, scope="module")
def asked_formulations() -> None:
    """None: what each does with several devices is tested."""


def program(fsdp: int) -> tuple[Config, Program]:
    """A step of a small model on the eight devices."""
    model = {"name": "rmt_nano", "dtype": "float32", "architecture": TINY | {"depths": (1, 1, 3, 1)}}
    mesh = {"fsdp": fsdp, "min_split": 64}
    config = parse({"batch_size": 16, "model": model, "mesh": mesh, "data": {"name": "digits", "image_size": 32}})
    return config, train_program(config, training_task(config, 10), make_mesh(config.mesh), steps_per_epoch=5)


def test_large_kernels_that_divide_are_split() -> None:
    placement = Placement(make_mesh(MeshConfig(2, 4)), min_split=100)
    shardings = placement.shardings(STATE)["params"]
    assert shardings["a"]["kernel"].spec == jax.P(None, "fsdp")
    assert shardings["a"]["bias"].is_fully_replicated
    assert shardings["b"]["kernel"].is_fully_replicated
    assert shardings["c"]["kernel"].is_fully_replicated
    assert placement.undivided(STATE) == ["params/b/kernel"]


def test_nothing_is_split_over_one_part() -> None:
    placement = Placement(make_mesh(MeshConfig()), min_split=1)
    assert all(sharding.is_fully_replicated for sharding in jax.tree.leaves(placement.shardings(STATE)))
    assert placement.undivided(STATE) == []


@pytest.mark.parametrize("config", [MeshConfig(3, 1), MeshConfig(-1, 3), MeshConfig(-1, -1), MeshConfig(0, -1)])
def test_mesh_that_does_not_fit(config: MeshConfig) -> None:
    with pytest.raises(ValueError, match=r"do not make 8 device\(s\). Use mesh.data=-1"):
        make_mesh(config)


def test_moments_and_moving_average_lie_where_their_parameter_does() -> None:
    state = program(fsdp=4)[1].abstract_state
    shardings = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.sharding
        for path, leaf in jax.tree.leaves_with_path(state)
    }
    split = {name for name, sharding in shardings.items() if not sharding.is_fully_replicated}
    own = {name.removeprefix("params/") for name in split if name.startswith("params/")}
    assert own
    for name in own:
        followers = {path: sharding for path, sharding in shardings.items() if path.endswith(f"/{name}")}
        assert len(followers) == 4  # itself, two moments, the moving average
        assert len(set(followers.values())) == 1


def test_summary_names_what_is_split_and_what_is_whole() -> None:
    _, split = program(fsdp=4)
    rows = describe_placement(split.placement, split.abstract_state)
    assert re.match(r"\d+ arrays in 4 parts, the largest: backbone/\S+/kernel \[3 3 16/4 16\]", rows["split"])
    assert "arrays" in rows["whole"]
    assert "not split" not in rows
    _, whole = program(fsdp=1)
    assert describe_placement(whole.placement, whole.abstract_state)["sharding"].endswith("the state whole on each")


def test_weights_are_gathered_block_by_block() -> None:
    """No activation travels: weights are gathered, and their gradients scattered; the other collectives are sums."""
    config, split = program(fsdp=8)
    sharding = batch_sharding(split.placement.mesh)
    batch = {
        "image": jax.ShapeDtypeStruct((config.batch_size, 32, 32, 3), jnp.uint8, sharding=sharding),
        "label": jax.ShapeDtypeStruct((config.batch_size,), jnp.int32, sharding=sharding),
    }
    text = split.train_step.lower(split.abstract_state, batch, {}).compile().as_text()
    counts = collections.Counter(
        re.findall(r" (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)\(", text)
    )
    assert counts["reduce-scatter"] >= 20
    assert counts["all-gather"] >= counts["reduce-scatter"]
    assert counts["all-to-all"] == 0
    # Mixing exchanges pictures with the other half of the batch: one permutation at most a device.
    assert counts["collective-permute"] <= 8


@pytest.mark.parametrize(("remat", "masked"), [("none", False), ("full", True)])
def test_a_stage_on_eight_devices_is_the_stage(remat: Remat, masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With drop path, one picture of each device's two at a time, and large weights split."""
    monkeypatch.setattr(block_loop, "NUMBERS_AT_A_TIME", 4 * 5 * 8)
    stage = small(drop_path=0.6, depths=(3, 1, 1, 1), remat=remat).backbone.layers[0]
    mesh = make_mesh(MeshConfig(2, 4))
    placement = Placement(mesh, min_split=64)
    kept = nnx.clone(stage)
    keep_to_devices(kept, PerDevice(mesh, placement))
    params = nnx.to_pure_dict(nnx.state(stage))
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(jax.random.key(1), (16, 4, 5, 8))
    valid = jnp.asarray([[4, 5], [3, 5], [4, 2], [1, 1]] * 4) if masked else None
    inside = jnp.ones(x.shape) if valid is None else clear(jnp.ones(x.shape), valid)

    def run(stage: nnx.Module, params: Tree, x: jax.Array, valid: jax.Array | None, inside: jax.Array) -> jax.Array:
        return jnp.square(nnx.merge(nnx.graphdef(stage), params)(x, keys, valid) * inside).mean()

    expected = jax.jit(jax.value_and_grad(functools.partial(run, stage), argnums=(0, 1)))(params, x, valid, inside)
    split = jax.device_put((x, valid, inside), batch_sharding(mesh))
    weights = jax.device_put(params, placement.shardings(params))
    with formulations_for(mesh):
        found = jax.jit(jax.value_and_grad(functools.partial(run, kept), argnums=(0, 1)))(weights, *split)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6 * np.abs(theirs).max())
    kernel = found[1][0]["blocks"][0]["ffn"]["fc1"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) != kernel.shape


@pytest.mark.slow
def test_a_model_kept_to_its_devices_compiles_for_several_tpus() -> None:
    """As teachers and `rmt labels make` run. What is left to the compiler, which cannot split them, has no kernels."""
    _, devices = open_topology("v5e:2x2")
    mesh = make_mesh(MeshConfig(), devices)
    model = abstract_model(lambda rngs: create_model("rmt_t", depths=(1, 1, 1, 1), dtype=jnp.bfloat16, rngs=rngs))
    model.eval()

    def lowered() -> Any:
        graph, state = nnx.split(model)
        weights = nnx.to_pure_dict(state)
        whole = with_sharding(weights, jax.tree.map(lambda _: replicated(mesh), weights))
        images = jax.ShapeDtypeStruct((4, 64, 64, 3), jnp.bfloat16, sharding=batch_sharding(mesh))
        with jax.set_mesh(mesh), formulations.asking("tpu"):
            return jax.jit(lambda state, images: nnx.merge(graph, state)(images)).lower(whole, images)

    assert "tpu_custom_call" not in lowered().as_text()
    keep_to_devices(model, PerDevice(mesh))
    assert "tpu_custom_call" in lowered().compile().as_text()
