"""bfloat16 computation with float32 parameters, norms, softmax and phases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models.small import abstract, arrays, images, predict, primitives, small


def test_parameters_and_logits_are_float32_and_maps_bfloat16() -> None:
    model = abstract("rmt_b_star", dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(arrays(model)[1:])} == {jnp.dtype("float32")}
    x = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    rngs = nnx.Rngs(0)
    maps, outputs = jax.eval_shape(
        lambda m, x: (m.backbone(x, rngs=rngs), m(x, rngs=rngs)), small("rmt_b_star", dtype=jnp.bfloat16), x
    )
    assert [m.dtype for m in maps] == [jnp.bfloat16] * 4
    assert [y.dtype for y in outputs] == [jnp.float32] * 2


@pytest.mark.parametrize("name", ["rmt_t", "rmt_b"])
def test_logits_are_close_to_float32(name: str) -> None:
    half = predict(small(name, dtype=jnp.bfloat16), images())
    full = predict(small(name), images())
    error = np.abs(half - full).max() / np.abs(full).max()
    # Some forty roundings of 2**-9 in a row, adding up like a random walk, give about 1 %.
    assert 1e-4 < error < 3e-2


def test_norms_and_softmax_are_computed_in_float32() -> None:
    model = small("rmt_t", dtype=jnp.bfloat16)
    jaxpr = jax.make_jaxpr(lambda model, x: model(x))(model, images()).jaxpr
    operands: dict[str, set[str]] = {}
    for equation in primitives(jaxpr):
        types = {str(v.aval.dtype) for v in equation.invars}
        operands.setdefault(equation.primitive.name, set()).update(types)
    # exp and reduce_max: softmax; rsqrt: norms. Sines and cosines are constants.
    for name in ("exp", "reduce_max", "rsqrt"):
        assert operands[name] == {"float32"}, name
    assert "bfloat16" in operands["conv_general_dilated"]
    assert "float32" not in operands["conv_general_dilated"]


def test_products_are_computed_in_bfloat16_and_summed_in_float32() -> None:
    model = small("rmt_t", dtype=jnp.bfloat16)
    retention = model.backbone.layers[0].blocks[0].retention
    x = jnp.ones((1, 4, 4, 8), jnp.bfloat16)
    jaxpr = jax.make_jaxpr(lambda module, x: module(x))(retention, x).jaxpr
    products = [e for e in primitives(jaxpr) if e.primitive.name == "dot_general"]
    assert {str(v.aval.dtype) for e in products for v in e.invars} == {"bfloat16"}
    batched = [e for e in products if e.params["dimension_numbers"][1] != ((), ())]  # logits and weighted values
    assert len(batched) == 4
    assert {str(e.outvars[0].aval.dtype) for e in batched} == {"float32"}


def test_gradients_are_float32_and_finite() -> None:
    graph, params, _ = arrays(small("rmt_b", dtype=jnp.bfloat16).backbone.layers[3].blocks[0])
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 3, 16))).astype(jnp.bfloat16)

    def loss(params: dict, x: jax.Array) -> jax.Array:
        return jnp.square(nnx.merge(graph, params, {})(x).astype(jnp.float32)).mean()

    grads = jax.tree.leaves(jax.jit(jax.grad(loss))(params, x))
    assert {g.dtype for g in grads} == {jnp.dtype("float32")}
    assert all(np.isfinite(g).all() for g in grads)
