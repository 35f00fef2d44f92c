"""Losses of detectors, element by element, in float32. What their sum is divided by is each head's matter."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int, Shaped

from rmt_jax.ops.boxes import giou


def sigmoid_focal_loss(
    logits: Float[Array, "*boxes classes"], labels: Int[Array, "*boxes"], *, gamma: float = 2.0, alpha: float = 0.25
) -> Float[Array, "*boxes classes"]:
    """Cross entropy of each class for itself, weighted by (1 - probability of what is right) ** gamma.

    Args:
        logits: of each class, for a sigmoid.
        labels: classes; `classes` and more for background.
        gamma: how much less what is nearly right counts.
        alpha: weight of the label's class; of the others 1 - alpha.

    Source: arXiv 1708.02002, mmdet `FocalLoss`.
    """
    logits = logits.astype(jnp.float32)
    is_label = labels[..., None] == jnp.arange(logits.shape[-1], dtype=labels.dtype)
    right = jnp.where(is_label, logits, -logits)
    weight = jnp.where(is_label, alpha, 1 - alpha)
    return -weight * jax.nn.sigmoid(-right) ** gamma * jax.nn.log_sigmoid(right)


def sigmoid_cross_entropy(logits: Float[Array, "*axes"], targets: Shaped[Array, "*axes"]) -> Float[Array, "*axes"]:
    """Of sigmoid(logits) with what it should be, in [0, 1]. Source: PyTorch's `binary_cross_entropy_with_logits`."""
    logits, targets = logits.astype(jnp.float32), targets.astype(jnp.float32)
    return -(targets * jax.nn.log_sigmoid(logits) + (1 - targets) * jax.nn.log_sigmoid(-logits))


def softmax_cross_entropy(
    logits: Float[Array, "*boxes classes"], labels: Int[Array, "*boxes"]
) -> Float[Array, "*boxes"]:
    """-log softmax(logits)[label]. Source: PyTorch's `cross_entropy`."""
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    return -jnp.take_along_axis(log_probabilities, labels[..., None], axis=-1)[..., 0]


def l1_loss(predictions: Float[Array, "*axes"], targets: Float[Array, "*axes"]) -> Float[Array, "*axes"]:
    """|prediction - target|."""
    return jnp.abs(predictions.astype(jnp.float32) - targets)


def smooth_l1_loss(
    predictions: Float[Array, "*axes"], targets: Float[Array, "*axes"], *, beta: float = 1 / 9
) -> Float[Array, "*axes"]:
    """d ** 2 / (2 beta) for distances d below beta, and d - beta / 2 above. Source: mmdet `SmoothL1Loss`."""
    distance = l1_loss(predictions, targets)
    return jnp.where(distance < beta, distance**2 / (2 * beta), distance - beta / 2)


def giou_loss(boxes: Float[Array, "*boxes 4"], targets: Float[Array, "*boxes 4"]) -> Float[Array, "*boxes"]:
    """1 - `giou` of pairs, in [0, 2]. Source: arXiv 1902.09630, mmdet `GIoULoss`."""
    return 1 - giou(boxes.astype(jnp.float32), targets)
