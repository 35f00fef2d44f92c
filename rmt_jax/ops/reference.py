"""The specification: every op of this package once more, written for reading.

Nothing here is fast and nothing but the tests calls it. Whatever formulation an op uses, it must equal these.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from rmt_jax.ops.feed_forward import FFNWeights


def retention(
    q: Float[Array, "queries dim"],
    k: Float[Array, "length dim"],
    v: Float[Array, "length value_dim"],
    decay: Float[Array, "queries length"],
) -> Float[Array, "queries value_dim"]:
    """softmax(q k^T + decay) v, for one head along one axis (paper, section 3.2)."""
    logits = q.astype(jnp.float32) @ k.astype(jnp.float32).T + decay
    weights = jax.nn.softmax(logits, axis=-1)
    return (weights @ v.astype(jnp.float32)).astype(v.dtype)


def rotate(x: Float[Array, "*tokens dim"], phase: Float[Array, "*phase_tokens pairs"]) -> Float[Array, "*tokens dim"]:
    """Turn each pair (x0, x1) of neighbouring channels by its phase: the parts of (x0 + i x1) e^(i phase)."""
    turned = jax.lax.complex(x[..., 0::2], x[..., 1::2]) * jax.lax.complex(jnp.cos(phase), jnp.sin(phase))
    return jnp.stack([turned.real, turned.imag], axis=-1).reshape(x.shape).astype(x.dtype)


def depthwise_conv2d(
    x: Float[Array, "batch height width channels"], kernel: Float[Array, "kernel_height kernel_width 1 channels"]
) -> Float[Array, "batch height width channels"]:
    """XLA's grouped convolution, stride 1, zero padding that keeps the size (odd kernels)."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
        precision=jax.lax.Precision.HIGHEST,
    )


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x times the standard normal distribution function at x: PyTorch's default GELU, not the tanh approximation."""
    return x * jax.scipy.stats.norm.cdf(x)


def feed_forward(
    x: Float[Array, "batch height width channels"],
    factor: Float[Array, " batch"],
    weights: FFNWeights,
    epsilon: float,
) -> Float[Array, "batch height width channels"]:
    """The feed-forward branch of a block with its residual, whose share in each picture is the factor."""
    centred = x - x.mean(axis=-1, keepdims=True)
    normal = centred / jnp.sqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + epsilon)
    h = gelu((normal * weights.norm_scale + weights.norm_bias) @ weights.fc1_kernel + weights.fc1_bias)
    h = h + depthwise_conv2d(h, weights.dw_kernel) + weights.dw_bias
    branch = h @ weights.fc2_kernel + weights.fc2_bias
    gamma = 1.0 if weights.gamma is None else weights.gamma
    return x + factor[:, None, None, None] * gamma * branch
