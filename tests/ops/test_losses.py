"""Losses by hand and where they are extreme. Upstream's numbers are in tests/reference."""

import jax
import jax.numpy as jnp
import numpy as np

from rmt_jax.ops import (
    giou_loss,
    sigmoid_cross_entropy,
    sigmoid_focal_loss,
    smooth_l1_loss,
    softmax_cross_entropy,
)


def test_focal_loss_by_hand() -> None:
    """A box of class 1 and one of background, which has no class of its own."""
    logits = np.array([[0.3, -0.7], [1.1, 0.2]])
    p = 1 / (1 + np.exp(-logits))
    expected = -0.75 * p**2 * np.log(1 - p)
    expected[0, 1] = -0.25 * (1 - p[0, 1]) ** 2 * np.log(p[0, 1])
    found = sigmoid_focal_loss(jnp.asarray(logits, jnp.bfloat16), jnp.asarray([1, 2]))
    assert found.dtype == jnp.float32
    found = sigmoid_focal_loss(jnp.asarray(logits, jnp.float32), jnp.asarray([1, 2]))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_sure_and_wrong_has_a_gradient() -> None:
    """At logits of 100 probabilities are 0 and 1 in float32, losses linear and gradients their weights."""
    logits, wrong = jnp.asarray([[100.0, -100.0]]), jnp.asarray([1])
    gradient = jax.grad(lambda x: sigmoid_focal_loss(x, wrong).sum())(logits)
    np.testing.assert_allclose(gradient, [[0.75, -0.25]], rtol=1e-6)
    gradient = jax.grad(lambda x: sigmoid_cross_entropy(x, jnp.asarray([[0, 1]])).sum())(logits)
    np.testing.assert_allclose(gradient, [[1, -1]], rtol=1e-6)
    gradient = jax.grad(lambda x: softmax_cross_entropy(x, wrong).sum())(logits)
    np.testing.assert_allclose(gradient, [[1, -1]], rtol=1e-6)


def test_smooth_l1_is_smooth() -> None:
    distance = jnp.asarray([0.0, 0.05, 1 / 9, 0.5, -0.5])
    found = jax.vmap(jax.value_and_grad(lambda x: smooth_l1_loss(x, jnp.zeros(()))))(distance)
    np.testing.assert_allclose(found[0], [0, 0.05**2 * 4.5, 1 / 18, 0.5 - 1 / 18, 0.5 - 1 / 18], rtol=1e-6)
    np.testing.assert_allclose(found[1], [0, 0.45, 1, 1, -1], rtol=1e-6)


def test_giou_loss_pulls_boxes_that_do_not_meet_together() -> None:
    box, target = jnp.asarray([[0.0, 0, 10, 10]]), jnp.asarray([[20.0, 0, 30, 10]])
    value, gradient = jax.value_and_grad(lambda box: giou_loss(box, target).sum())(box)
    np.testing.assert_allclose(value, 1 + 1 / 3, rtol=1e-6)  # a third of the box around both is in neither
    assert gradient[0, 2] < 0
    np.testing.assert_array_equal(giou_loss(box, box), [0.0])
