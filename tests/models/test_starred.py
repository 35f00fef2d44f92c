"""Token-labelled models: two outputs, the rule that joins them, and mix-token."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rmt_jax.models import Classifier
from rmt_jax.models.rmt import Backbone
from tests.models.small import abstract, arrays, images, small

TAPS = {"features": 16, "proj": 12, "norm": 12, "activation": 12}


def boxes(*edges: int) -> jax.Array:
    return jnp.array([edges], jnp.int32)


@functools.cache
def mixed(*edges: int) -> tuple[jax.Array, jax.Array]:
    """(logits, token logits) in training mode of three 64x96 pictures: 2x3 tokens."""
    return mix_program()(boxes(*edges))


@functools.cache
def mix_program():
    graph, params, stats = arrays(small("rmt_s_star"))
    return jax.jit(lambda boxes: nnx.merge(graph, params, stats)(images(3, 64, 96), mix_boxes=boxes))


@functools.cache
def unmixed() -> tuple[jax.Array, jax.Array]:
    graph, params, stats = arrays(small("rmt_s_star"))
    return jax.jit(lambda x: nnx.merge(graph, params, stats)(x))(images(3, 64, 96))


def test_training_mode_returns_logits_and_token_logits() -> None:
    logits, aux = unmixed()
    assert (logits.shape, aux.shape) == ((3, 5), (3, 2, 3, 5))
    assert logits.dtype == aux.dtype == jnp.float32


def test_evaluation_adds_half_of_the_largest_token_logit() -> None:
    model = small("rmt_s_star")
    model.eval()
    parts = small("rmt_s_star")
    parts.eval()
    parts.deterministic = False  # the two outputs, with everything else in evaluation mode
    run = jax.jit(lambda models, x: [model(x) for model in models])
    joined, (logits, aux) = run([model, parts], images(2, 64, 96))
    expected = np.asarray(logits) + 0.5 * np.asarray(aux).reshape(2, 6, 5).max(axis=1)
    np.testing.assert_allclose(joined, expected, rtol=1e-6, atol=1e-6)
    assert np.abs(joined - logits).max() > 1e-2


def test_box_over_everything_reverses_the_batch_for_the_logits_only() -> None:
    """Token logits are brought back to their own pictures. BatchNorm sees the same batch in another order."""
    logits, aux = mixed(0, 0, 2, 3)
    np.testing.assert_allclose(logits, unmixed()[0][::-1], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(aux, unmixed()[1], rtol=1e-5, atol=1e-5)
    assert np.abs(logits - unmixed()[0]).max() > 1e-2


def test_empty_box_changes_nothing() -> None:
    for ours, expected in zip(mixed(1, 1, 1, 1), unmixed(), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


def test_box_over_a_part_changes_both_outputs() -> None:
    for ours, expected in zip(mixed(0, 0, 1, 2), unmixed(), strict=True):
        assert np.abs(ours - expected).max() > 1e-2


def test_the_box_counts_tokens_of_eight_stem_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the first stage is given is the stem's map with the box times eight exchanged."""
    model, seen = small("rmt_s_star"), []

    def record(stage: nnx.Module, x: jax.Array, *_: Any) -> jax.Array:
        seen.append(x)
        return x

    monkeypatch.setattr(type(model.backbone.layers[0]), "__call__", record)
    x = images(2, 64, 96)

    def run(model: Classifier, boxes: jax.Array) -> list[jax.Array]:
        seen.clear()
        model.backbone(x, mix_boxes=boxes)
        model.backbone(x)
        return [seen[0], seen[4]]

    given, stem = jax.jit(run)(model, boxes(0, 1, 1, 3))
    expected = np.array(stem)
    expected[:, 0:8, 8:24] = np.asarray(stem)[::-1, 0:8, 8:24]
    np.testing.assert_allclose(given, expected, rtol=1e-6, atol=1e-6)


def test_mix_boxes_need_an_auxiliary_head() -> None:
    with pytest.raises(ValueError, match=r"mix_boxes need a token-labelled model \(rmt_s_star.*no aux_head"):
        small()(images(), mix_boxes=boxes(0, 0, 1, 1))


def test_mix_boxes_need_sizes_that_are_multiples_of_32() -> None:
    with pytest.raises(ValueError, match=r"multiples of 32; got images of 64x80"):
        small("rmt_s_star")(images(2, 64, 80), mix_boxes=boxes(0, 0, 1, 1))


@pytest.mark.parametrize("tap", TAPS)
def test_auxiliary_head_reads_where_the_config_says(tap: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small("rmt_s_star", aux_tap=tap)
    assert model.aux_head.kernel.shape == (TAPS[tap], 5)
    features = jnp.asarray(np.random.default_rng(0).standard_normal((2, 2, 3, 16)), jnp.float32)
    monkeypatch.setattr(Backbone, "__call__", lambda *args, **options: (features,))
    model.eval()
    model.deterministic = False
    _, aux = jax.jit(lambda model: model(images()))(model)

    x = np.asarray(features, np.float64)
    if tap != "features":
        x = x @ model.proj.kernel[...] + model.proj.bias[...]
    if tap in ("norm", "activation"):
        normed = (x - model.norm.mean[...]) / np.sqrt(model.norm.var[...] + 1e-5)
        x = normed * model.norm.scale[...] + model.norm.bias[...]
    if tap == "activation":
        x = x / (1 + np.exp(-x))
    expected = x @ model.aux_head.kernel[...] + model.aux_head.bias[...]
    np.testing.assert_allclose(aux, expected, rtol=1e-5, atol=3e-6)


def test_plain_models_have_no_auxiliary_head() -> None:
    assert abstract("rmt_s").aux_head is None
