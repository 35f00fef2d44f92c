"""Targets and losses of classification, in float32."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int


def smooth_labels(labels: Int[Array, " batch"], num_classes: int, smoothing: float) -> Float[Array, "batch classes"]:
    """Targets with smoothing / num_classes everywhere and the rest on the label (timm's convention)."""
    return jax.nn.one_hot(labels, num_classes) * (1 - smoothing) + smoothing / num_classes


def cross_entropy(
    logits: Float[Array, "batch *tokens classes"], targets: Float[Array, "batch *#tokens classes"]
) -> Float[Array, ""]:
    """Mean over all positions of -sum(targets * log softmax(logits))."""
    return -(targets * jax.nn.log_softmax(logits.astype(jnp.float32))).sum(axis=-1).mean()


def binary_cross_entropy(
    logits: Float[Array, "batch *tokens classes"], targets: Float[Array, "batch *#tokens classes"]
) -> Float[Array, ""]:
    """Mean over all positions and classes of the cross entropy of sigmoid(logits) (timm's `BinaryCrossEntropy`)."""
    logits = logits.astype(jnp.float32)
    return -(targets * jax.nn.log_sigmoid(logits) + (1 - targets) * jax.nn.log_sigmoid(-logits)).mean()
