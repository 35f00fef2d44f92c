"""How blocks are run changes no number: recomputed in the backward pass, looped over, with gathered weights."""

import functools
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rmt_jax.models import block_loop
from rmt_jax.models.block import Block
from rmt_jax.models.block_loop import PerDevice, Pictures, Remat, Run
from rmt_jax.models.rmt import Stage
from rmt_jax.ops import clear, formulations
from tests.models.small import Tree, arrays, images, primitives, small


def stage(remat: Remat, scan: bool, per_device: PerDevice | None = None) -> Stage:
    """Three blocks, the second and the third of which drop something, at different rates."""
    model = small(drop_path=0.6, depths=(3, 1, 1, 1), remat=remat, scan=scan)
    stage = model.backbone.layers[0]
    stage.per_device = per_device
    return stage


def double(weights: Tree) -> Tree:
    """In the place of a gather, and visible in the numbers."""
    return jax.tree.map(lambda leaf: 2 * leaf, weights)


def doubled(run: Run, pictures: Pictures, weights: list[Tree]) -> jax.Array:
    """In the place of devices."""
    return run(pictures, weights, double)


@functools.cache
def loss_and_gradients(remat: Remat, scan: bool) -> tuple[jax.Array, Tree]:
    graph, params, stats = arrays(stage(remat, scan))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((6, 4, 5, 8)), jnp.float32)

    def loss(params: Tree, keys: jax.Array) -> jax.Array:
        return jnp.square(nnx.merge(graph, params, stats, copy=True)(x, keys)).mean()

    return jax.jit(jax.value_and_grad(loss))(params, jax.random.split(jax.random.key(0), 3))


@pytest.mark.parametrize(("remat", "scan"), [("dots", False), ("full", False), ("none", True), ("full", True)])
def test_loss_and_every_gradient_are_the_same_with_drop_path_on(remat: Remat, scan: bool) -> None:
    (loss, grads), (expected_loss, expected) = loss_and_gradients(remat, scan), loss_and_gradients("none", False)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    for ours, theirs in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6 * np.abs(theirs).max())


def kept(remat: Remat) -> list[tuple[int, ...]]:
    """Shapes of what the forward pass keeps for the backward pass."""
    graph, params, stats = arrays(stage(remat, scan=False))

    def run(params: Tree) -> jax.Array:
        return nnx.merge(graph, params, stats, copy=True)(jnp.ones((6, 4, 5, 8)))

    return [leaf.shape for leaf in jax.tree.leaves(jax.eval_shape(lambda params: jax.vjp(run, params)[1], params))]


def test_each_policy_keeps_less_than_the_one_before() -> None:
    sizes = {remat: sum(int(np.prod(shape)) for shape in kept(remat)) for remat in get_args(Remat)}
    assert sizes["full"] < sizes["dots"] < sizes["none"]


@pytest.mark.parametrize(("remat", "scan", "count"), [("none", False, 0), ("full", False, 6), ("dots", True, 4)])
def test_one_checkpoint_a_block_where_asked_for(remat: Remat, scan: bool, count: int) -> None:
    model = small(remat=remat, scan=scan, depths=(3, 1, 1, 1))
    jaxpr = jax.make_jaxpr(lambda model, x: model(x))(model, images()).jaxpr
    names = [equation.primitive.name for equation in primitives(jaxpr)]
    assert sum(name in ("remat", "remat2", "checkpoint") for name in names) == count
    assert ("scan" in names) == scan


@pytest.mark.parametrize("scan", [False, True])
def test_block_loop_run_with_what_the_gather_gives(scan: bool) -> None:
    x = jnp.ones((6, 4, 5, 8))
    graph, params, stats = arrays(stage("none", scan=scan, per_device=doubled))
    plain, *_ = arrays(stage("none", scan=False))
    ours = jax.jit(lambda params: nnx.merge(graph, params, stats, copy=True)(x))(params)
    expected = jax.jit(lambda params: nnx.merge(plain, double(params), stats, copy=True)(x))(params)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(("choice", "calls"), [("called", 6), ("inlined", 0)])
@pytest.mark.parametrize("remat", ["none", "full"])
def test_calls_of_one_program_are_kept_where_asked_for(remat: Remat, choice: str, calls: int) -> None:
    """For three blocks forward and back, and not of what they call. The numbers are those of `loss_and_gradients`."""
    graph, params, stats = arrays(stage(remat, scan=False))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((6, 4, 5, 8)), jnp.float32)

    def loss(params: Tree, keys: jax.Array) -> jax.Array:
        return jnp.square(nnx.merge(graph, params, stats, copy=True)(x, keys)).mean()

    keys = jax.random.split(jax.random.key(0), 3)
    with formulations.asking("cpu", block_calls=choice, depthwise="shifts"):
        program = jax.jit(jax.value_and_grad(loss)).lower(params, keys).compile()
    kept = [line for line in program.as_text().splitlines() if " call(" in line and 'inlineable="false"' in line]
    assert len(kept) == calls
    expected = loss_and_gradients("none", False)
    for ours, theirs in zip(*map(jax.tree.leaves, (program(params, keys), expected)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6 * np.abs(theirs).max())


def test_traced_once_for_all_blocks_but_where_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    traced = []
    original = Block.__call__
    monkeypatch.setattr(Block, "__call__", lambda self, *given: (traced.append(self), original(self, *given))[1])
    graph, params, stats = arrays(stage("none", scan=False))

    def run(params: Tree) -> jax.Array:
        return nnx.merge(graph, params, stats, copy=True)(jnp.ones((1, 4, 5, 8))).sum()

    for function, count in [(jax.jit(run), 1), (jax.jit(jax.grad(run)), 1), (run, 3), (jax.grad(run), 3)]:
        traced.clear()
        function(params)
        assert len(traced) == count


@pytest.fixture
def few_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CPU, with maps of 4x5x8 that are too large for more than two pictures at a time."""
    monkeypatch.setattr(block_loop, "NUMBERS_AT_A_TIME", 2 * 4 * 5 * 8)


@pytest.mark.parametrize(("scan", "masked"), [(False, True), (True, False)])
def test_a_few_pictures_at_a_time_give_the_same(few_pictures: None, scan: bool, masked: bool) -> None:
    graph, params, stats = arrays(stage("none", scan))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((6, 4, 5, 8)), jnp.float32)
    valid = jnp.asarray([[4, 5], [3, 5], [4, 2], [1, 1], [2, 3], [4, 5]]) if masked else None
    inside = jnp.ones(x.shape) if valid is None else clear(jnp.ones(x.shape), valid)

    def loss(params: Tree, x: jax.Array) -> jax.Array:
        keys = jax.random.split(jax.random.key(0), 3)
        return jnp.square(nnx.merge(graph, params, stats, copy=True)(x, keys, valid) * inside).mean()

    found = {}
    for choice in ("few_pictures", "all_pictures"):
        with formulations.asking("cpu", blocks=choice):
            names = [equation.primitive.name for equation in primitives(jax.make_jaxpr(loss)(params, x).jaxpr)]
            found[choice] = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(params, x)
        assert names.count("scan") == scan + (choice == "few_pictures")
    for ours, theirs in zip(*map(jax.tree.leaves, found.values()), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6 * np.abs(theirs).max())


def test_a_few_pictures_at_a_time_keep_what_retention_gave(few_pictures: None) -> None:
    """Beside the input, one map a block: three parts of two pictures."""
    with formulations.asking("cpu", blocks="few_pictures"):
        assert kept("none").count((3, 2, 4, 5, 8)) == 3 + 1


@pytest.mark.parametrize(
    ("batch", "expected"), [(1, None), (2, None), (4, 2), (5, 1), (6, 2), (7, 1)], ids=lambda value: str(value)
)
def test_pictures_at_a_time(few_pictures: None, batch: int, expected: int | None) -> None:
    with formulations.asking("cpu"):
        assert block_loop.pictures_at_a_time(jnp.ones((batch, 4, 5, 8))) == expected


def test_small_maps_are_computed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with formulations.asking("cpu"):
        for maps, expected in [(0.5, 1), (3.5, 3), (4, None)]:
            monkeypatch.setattr(block_loop, "NUMBERS_AT_A_TIME", int(maps * 4 * 5 * 8))
            assert block_loop.pictures_at_a_time(jnp.ones((6, 4, 5, 8))) == expected


@pytest.mark.parametrize("platform", ["tpu", "gpu"])
def test_accelerators_take_all_pictures(few_pictures: None, platform: str) -> None:
    with formulations.asking(platform):
        assert block_loop.pictures_at_a_time(jnp.ones((6, 4, 5, 8))) is None
