"""Distillation: both losses by hand, and the teacher in the training step's first half."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rmt_jax.models import variant
from rmt_jax.tasks import Classification, DistillConfig, Teacher, normalize
from rmt_jax.tasks.losses import cross_entropy, smooth_labels
from rmt_jax.training.state import split_model

SIZES = {"depths": (1, 1, 1, 1), "embed_dims": (8, 8, 16, 16), "num_heads": (2, 2, 2, 2), "proj_dim": 16}


def teacher(**config: object) -> Teacher:
    return Teacher(nnx.split(nnx.Dict())[0], DistillConfig("weights", **config))


def test_hard_is_the_cross_entropy_to_the_best_class() -> None:
    logits, theirs = jnp.array([[1.0, 0.0, 2.0], [0.0, 0.0, 0.0]]), jnp.array([[0.0, 5.0, 4.0], [0.0, 0.0, 9.0]])
    expected = -np.mean([np.log(1 / (np.e + 1 + np.e**2)), np.log(1 / 3)])
    np.testing.assert_allclose(teacher(kind="hard").loss(logits, theirs), expected, rtol=1e-6)


def test_soft_is_the_divergence_at_a_temperature() -> None:
    logits, theirs = np.array([[1.0, 0.0, 2.0]]), np.array([[0.0, 5.0, 4.0]])
    own, goal = (np.exp(x / 3) / np.exp(x / 3).sum() for x in (logits, theirs))
    expected = 9 * (goal * np.log(goal / own)).sum()
    loss = teacher(kind="soft", temperature=3.0).loss(jnp.asarray(logits), jnp.asarray(theirs))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(teacher(kind="soft").loss(jnp.asarray(logits), jnp.asarray(logits)), 0, atol=1e-7)


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_the_teacher_has_its_weight_in_the_loss(weight: float) -> None:
    model = variant("rmt_nano", **SIZES, num_classes=3, drop_path=0.0)
    half = (0.5, 0.5, 0.5)
    plain = Classification(model=model, dtype="float32", mean=half, std=half, label_smoothing=0.1)
    guide = plain.init_model(nnx.Rngs(1))
    guide.eval()
    graph, params, batch_stats = split_model(guide)
    guide = Teacher(graph, DistillConfig("weights", kind="hard", weight=weight))
    task = Classification(model, "float32", half, half, label_smoothing=0.1, teacher=guide)
    batch = {
        "image": jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)), jnp.uint8),
        "label": jnp.array([0, 2]),
    }
    student = task.init_model(nnx.Rngs(0))
    frozen = {"params": params, "batch_stats": batch_stats}
    images = normalize(batch["image"], half, half)
    theirs = nnx.merge(graph, params, batch_stats)(images)
    logits = student(images)
    labels = cross_entropy(logits, smooth_labels(batch["label"], 3, 0.1))
    goal = cross_entropy(logits, jax.nn.one_hot(theirs.argmax(axis=-1), 3))
    loss, _ = task.loss(student, task.prepare(batch, jax.random.key(0), frozen), nnx.Rngs(0))
    np.testing.assert_allclose(loss, (1 - weight) * labels + weight * goal, rtol=1e-5)


def test_impossible_distillation() -> None:
    with pytest.raises(ValueError, match=r"distill\.weight=1\.5"):
        DistillConfig("x", weight=1.5)
    with pytest.raises(ValueError, match=r"distill\.temperature=0\.0: expected a positive"):
        DistillConfig("x", temperature=0.0)
