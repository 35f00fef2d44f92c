"""Recomputing blocks in the backward pass changes no number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rmt_jax.models.rmt import Stage
from tests.models.small import Tree, arrays, images, primitives, small


def stage(remat: bool) -> Stage:
    """Two blocks whose drop path drops something."""
    model = small(drop_path=0.6, depths=(2, 1, 1, 1), remat=remat)
    for block in model.backbone.layers[0].blocks:
        block.drop_path.rate = 0.4
    return model.backbone.layers[0]


def loss_and_gradients(remat: bool) -> tuple[jax.Array, Tree]:
    graph, params, stats = arrays(stage(remat))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((6, 4, 5, 8)), jnp.float32)

    def loss(params: Tree, keys: jax.Array) -> jax.Array:
        return jnp.square(nnx.merge(graph, params, stats, copy=True)(x, keys)).mean()

    return jax.jit(jax.value_and_grad(loss))(params, jax.random.split(jax.random.key(0), 2))


def test_loss_and_every_gradient_are_the_same_with_drop_path_on() -> None:
    (loss, grads), (expected_loss, expected) = loss_and_gradients(True), loss_and_gradients(False)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    for ours, theirs in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6 * np.abs(theirs).max())


@pytest.mark.parametrize("remat", [True, False])
def test_one_checkpoint_a_block_where_asked_for(remat: bool) -> None:
    model = small(remat=remat, depths=(2, 1, 1, 1))
    jaxpr = jax.make_jaxpr(lambda model, x: model(x))(model, images()).jaxpr
    names = [equation.primitive.name for equation in primitives(jaxpr)]
    assert sum(name in ("remat", "remat2", "checkpoint") for name in names) == (5 if remat else 0)
