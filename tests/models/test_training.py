"""Real numbers from small variants of the models: gradients, BatchNorm statistics, evaluation mode."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rmt_jax.models import RMTConfig
from tests.models.small import Tree, arrays, flat, images, predict, small


class Trained(NamedTuple):
    """One training-mode pass without drop path."""

    config: RMTConfig
    outputs: list[np.ndarray]
    grads: dict[str, np.ndarray]
    old_stats: dict[str, np.ndarray]
    new_stats: dict[str, np.ndarray]


@functools.cache
def trained(name: str) -> Trained:
    model = small(name)
    graph, params, stats = arrays(model)

    def loss(params: Tree, stats: Tree, x: jax.Array) -> tuple[jax.Array, Any]:
        model = nnx.merge(graph, params, stats)
        outputs = jax.tree.leaves(model(x))
        # Random weights: a plain sum over a softmax or a BatchNorm has a gradient of zero.
        weights = [np.random.default_rng(7).standard_normal(y.shape).astype(np.float32) for y in outputs]
        total = sum((y * w).sum() for y, w in zip(outputs, weights, strict=True))
        return jnp.asarray(total), (outputs, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))

    with jax.numpy_dtype_promotion("strict"):
        grads, (outputs, new) = jax.jit(jax.grad(loss, has_aux=True))(params, stats, images())
    return Trained(model.config, outputs, flat(grads), flat(stats), flat(new))


def biases_before_batch_norm(config: RMTConfig) -> set[str]:
    """BatchNorm subtracts them again, so their gradient is zero but for rounding."""
    paths = {f"backbone/patch_embed/proj/{i}/bias" for i in (0, 3, 6, 9)} | {"proj/bias"}
    paths |= {f"backbone/layers/{i}/downsample/reduction/bias" for i in range(3)}
    if not config.aux_head:  # else the last block leads to the auxiliary head too
        last = f"backbone/layers/3/blocks/{config.depths[3] - 1}/ffn"
        paths |= {f"{last}/fc2/bias", f"{last}/dwconv/bias"}
    return paths


# With full retention in the third stage, with layer scale, with an auxiliary head. The others are made of the same
# parts in other numbers, most of which small variants do not keep.
every_kind = pytest.mark.parametrize("name", ["rmt_t", "rmt_b", "rmt_s_star"])


@every_kind
def test_outputs_are_finite_and_differ_between_pictures(name: str) -> None:
    for output in trained(name).outputs:
        assert np.isfinite(output).all()
        assert np.abs(output[0] - output[1]).max() > 1e-2


@every_kind
def test_every_parameter_receives_a_gradient(name: str) -> None:
    result = trained(name)
    zero = biases_before_batch_norm(result.config)
    assert zero <= set(result.grads)
    norms = {path: float(np.linalg.norm(grad)) for path, grad in result.grads.items()}
    largest = max(norms.values())
    # The smallest true gradient is above 1e-3 of the largest, the rounding noise below 1e-6.
    assert {path: norm for path, norm in norms.items() if path not in zero and not norm > 1e-4 * largest} == {}
    assert {path: norm for path, norm in norms.items() if path in zero and not norm < 1e-5 * largest} == {}


def test_layer_scale_of_every_branch_receives_a_gradient() -> None:
    gammas = {path for path in trained("rmt_b").grads if "gamma" in path}
    expected = {f"backbone/layers/{stage}/blocks/0/gamma_{i}" for stage in (2, 3) for i in (1, 2)}
    assert gammas == expected


@every_kind
def test_training_mode_moves_all_statistics(name: str) -> None:
    result = trained(name)
    assert len(result.old_stats) == 2 * (4 + 3 + 1)  # mean and variance in the stem, between stages and in the head
    unmoved = [path for path, old in result.old_stats.items() if np.isclose(result.new_stats[path], old).any()]
    # A single channel may land where it was; a layer does not.
    assert [path for path in unmoved if np.isclose(result.new_stats[path], result.old_stats[path]).all()] == []


@every_kind
def test_evaluation_of_a_picture_does_not_depend_on_its_batch(name: str) -> None:
    """The same compiled program, so to the bit."""
    model, run = small(name), jax.jit(evaluate, static_argnums=0)
    graph, params, stats = arrays(model)
    x = images()
    other = x.at[1].set(images(seed=1)[1])
    first, again, mixed = (run(graph, params, stats, batch) for batch in (x, x, other))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[0][0], mixed[0][0])
    assert np.abs(first[0][1] - mixed[0][1]).max() > 1e-2
    for path, new in flat(first[1]).items():
        np.testing.assert_array_equal(new, flat(stats)[path])  # evaluation moves nothing


def evaluate(graph: nnx.GraphDef, params: Tree, stats: Tree, x: jax.Array) -> tuple[jax.Array, Tree]:
    model = nnx.merge(graph, params, stats)
    model.eval()
    return model(x), nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))


def test_a_single_picture_alone_has_the_logits_it_has_in_a_batch() -> None:
    model, x = small(), images(batch=3)
    np.testing.assert_allclose(predict(model, x)[1:2], predict(model, x[1:2]), rtol=1e-5, atol=3e-6)


def test_training_mode_depends_on_the_batch() -> None:
    """The contrast to evaluation mode: BatchNorm takes the statistics of the batch."""
    graph, params, stats = arrays(small())
    run = jax.jit(lambda params, stats, x: nnx.merge(graph, params, stats)(x))
    x = images()
    other = x.at[1].set(images(seed=1)[1])
    assert np.abs(run(params, stats, x)[0] - run(params, stats, other)[0]).max() > 1e-2
