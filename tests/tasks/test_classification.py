"""Loss, normalisation and metric of classification, against numbers worked out by hand."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rmt_jax.models import variant
from rmt_jax.ops import token_targets
from rmt_jax.tasks import Classification, MixConfig
from rmt_jax.tasks.accuracy import TopK
from rmt_jax.tasks.classification import normalize
from rmt_jax.tasks.losses import binary_cross_entropy, cross_entropy, smooth_labels


def test_smoothed_labels() -> None:
    np.testing.assert_allclose(smooth_labels(jnp.array([1]), 4, 0.2), [[0.05, 0.85, 0.05, 0.05]], rtol=1e-6)


def test_cross_entropy_is_the_mean_over_samples_and_tokens() -> None:
    targets = jnp.array([[1.0, 0.0], [0.5, 0.5]])
    logits = jnp.array([[math.log(3.0), 0.0], [0.0, 0.0]])
    expected = (math.log(4 / 3) + math.log(2)) / 2
    np.testing.assert_allclose(cross_entropy(logits, targets), expected, rtol=1e-6)
    tokens = jnp.repeat(logits[:, None, None], 3, axis=2)
    np.testing.assert_allclose(cross_entropy(tokens, targets[:, None, None]), expected, rtol=1e-6)


def test_normalised_colours() -> None:
    image = jnp.array([0, 51, 255], jnp.uint8).reshape(1, 1, 1, 3)
    np.testing.assert_allclose(normalize(image, (0.5, 0.0, 0.5), (0.5, 0.2, 0.25))[0, 0, 0], [-1, 1, 2], rtol=1e-6)


def outputs(logits: list[list[float]], label: list[int], mask: list[bool]) -> dict[str, np.ndarray]:
    return {"logits": np.array(logits, np.float32), "label": np.array(label), "mask": np.array(mask)}


def test_top_1_and_top_5_by_hand() -> None:
    metric = TopK(6)
    ranks = [[6.0, 5.0, 4.0, 3.0, 2.0, 1.0]] * 4
    metric.add(outputs(ranks, [0, 1, 4, 5], [True] * 4))
    assert metric.compute()["top1"] == 25
    assert metric.compute()["top5"] == 75


def test_padding_does_not_count() -> None:
    metric = TopK(2)
    metric.add(outputs([[1.0, 0.0], [1.0, 0.0]], [0, 1], [True, False]))
    metric.add(outputs([[0.0, 0.0]], [0], [False]))
    loss = pytest.approx(math.log(1 + math.exp(-1)))
    assert metric.compute() == {"top1": 100, "top5": 100, "loss": loss, "mean_per_class": 100}


def test_equal_logits_go_to_the_lower_class_and_nan_is_never_right() -> None:
    for label, right in ((0, 100), (1, 0)):
        metric = TopK(2)
        metric.add(outputs([[2.0, 2.0]], [label], [True]))
        assert metric.compute()["top1"] == right
    metric = TopK(7)
    metric.add(outputs([[math.nan] * 7] * 2, [0, 6], [True, True]))
    assert metric.compute()["top1"] == 0
    assert metric.compute()["top5"] == 0


def test_nothing_to_evaluate() -> None:
    with pytest.raises(ValueError, match="No sample to evaluate"):
        TopK(2).compute()


def test_a_starred_model_adds_half_the_loss_of_its_tokens() -> None:
    sizes = {"depths": (1, 1, 1, 1), "embed_dims": (8, 8, 16, 16), "num_heads": (2, 2, 2, 2), "proj_dim": 16}
    model = variant("rmt_s_star", **sizes, num_classes=3, drop_path=0.0)
    task = Classification(model=model, dtype="float32", mean=(0.5,) * 3, std=(0.5,) * 3, label_smoothing=0.1)
    starred = task.init_model(nnx.Rngs(0))
    batch = {
        "image": jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 32, 64, 3)), jnp.uint8),
        "label": jnp.array([0, 2]),
    }
    logits, aux = starred(normalize(batch["image"], task.mean, task.std))
    targets = smooth_labels(batch["label"], 3, 0.1)
    expected = cross_entropy(logits, targets) + 0.5 * cross_entropy(aux, targets[:, None, None])
    loss, metrics = task.loss(starred, task.prepare(batch, jax.random.key(0)), nnx.Rngs(0))
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert metrics["loss"] == loss
    assert float(metrics["top1"]) in {0, 50, 100}

    starred.eval()
    predicted = task.predict(starred, batch | {"mask": jnp.array([True, False])})
    assert predicted["logits"].shape == (2, 3)
    np.testing.assert_array_equal(predicted["mask"], [True, False])


def test_binary_cross_entropy_is_the_mean_over_classes() -> None:
    logits, targets = jnp.array([[0.0, math.log(3.0)]]), jnp.array([[1.0, 0.25]])
    expected = (math.log(2) - 0.25 * math.log(0.75) - 0.75 * math.log(0.25)) / 2
    np.testing.assert_allclose(binary_cross_entropy(logits, targets), expected, rtol=1e-6)


def starred_task(**changes: Any) -> Classification:
    sizes = {"depths": (1, 1, 1, 1), "embed_dims": (8, 8, 16, 16), "num_heads": (2, 2, 2, 2), "proj_dim": 16}
    model = variant("rmt_s_star", **sizes, num_classes=10, drop_path=0.0)
    return Classification(model, "float32", (0.5,) * 3, (0.5,) * 3, label_smoothing=0.1, **changes)


def token_batch(size: int = 4) -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    return {
        "image": jnp.asarray(rng.integers(0, 256, (size, 64, 64, 3)), jnp.uint8),
        "label": jnp.asarray(rng.integers(0, 10, size), jnp.int32),
        "label_scores": jnp.asarray(rng.standard_normal((size, 5, 18, 18)), jnp.float16),
        "label_ids": jnp.asarray(rng.integers(0, 10, (size, 5, 18, 18)), jnp.int16),
        "crop_box": jnp.asarray(rng.uniform(0.2, 0.5, (size, 4)), jnp.float32),
    }


@pytest.mark.parametrize("upstream_crops", [False, True])
def test_token_labels_are_the_targets(upstream_crops: bool) -> None:
    task, batch = starred_task(upstream_crops=upstream_crops), token_batch()
    prepared = task.prepare(batch, jax.random.key(0))
    maps = batch["label_scores"], batch["label_ids"], batch["crop_box"]
    crop, tokens = token_targets(*maps, 10, size=2, smoothing=0.1, upstream_crops=upstream_crops)
    np.testing.assert_array_equal(prepared["target"], crop)
    np.testing.assert_array_equal(prepared["token_target"], tokens)
    model = task.init_model(nnx.Rngs(0))
    logits, aux = model(prepared["image"])
    expected = cross_entropy(logits, crop) + 0.5 * cross_entropy(aux, tokens)
    np.testing.assert_allclose(task.loss(model, prepared, nnx.Rngs(0))[0], expected, rtol=1e-6)


def test_mix_token_mixes_the_crops_target_by_area_and_swaps_the_tokens_back() -> None:
    task, batch = starred_task(mix=MixConfig(mix_token=True, group=2)), token_batch()
    prepared = task.prepare(batch, jax.random.key(3))
    plain = starred_task().prepare(batch, jax.random.key(3))
    boxes = prepared["boxes"]
    assert boxes.shape == (2, 4)
    share = np.asarray((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / 4).repeat(2)[:, None]
    partner = np.asarray(plain["target"]).reshape(2, 2, 10)[:, ::-1].reshape(4, 10)
    np.testing.assert_allclose(prepared["target"], (1 - share) * plain["target"] + share * partner, rtol=1e-5)
    np.testing.assert_array_equal(prepared["token_target"], plain["token_target"])
    np.testing.assert_array_equal(prepared["image"], plain["image"])  # the exchange is the model's
    model = task.init_model(nnx.Rngs(0))
    logits, aux = model(prepared["image"], mix_boxes=boxes)
    expected = cross_entropy(logits, prepared["target"]) + 0.5 * cross_entropy(aux, prepared["token_target"])
    np.testing.assert_allclose(task.loss(model, prepared, nnx.Rngs(0))[0], expected, rtol=1e-6)
    assert task.inseparable == 2


def test_erasing_comes_before_mixing_and_both_take_the_key() -> None:
    task = starred_task(erasing=1.0, mix=MixConfig(mixup=0.8, group=2))
    batch = {key: value for key, value in token_batch().items() if key in ("image", "label")}
    first, again, other = (np.asarray(task.prepare(batch, jax.random.key(seed))["image"]) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1
    # Mixup's partners sum to what they were before it, which is with their boxes of noise.
    erased = np.asarray(starred_task(erasing=1.0).prepare(batch, jax.random.key(0))["image"])
    np.testing.assert_allclose(first[0] + first[1], erased[0] + erased[1], atol=1e-5)
