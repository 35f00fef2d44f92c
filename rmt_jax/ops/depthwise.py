"""Depthwise convolution with its own backward pass: shifted multiply-adds, or on GPUs cuDNN's grouped convolution.

Measured on CPUs and in compiled TPU programs, a sum of shifted products moves fewer bytes than XLA's grouped
convolution, but only forward: its automatic derivative moves five times more. Hence the hand-written rule. On GPUs XLA
computes what comes before, such as a GELU, once for every tap, and cuDNN is 2.4 to 4 times as fast.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from rmt_jax.ops.formulations import by_platform, chosen_here, overrides

Map = Float[Array, "batch height width channels"]
Kernel = Float[Array, "kernel_height kernel_width 1 channels"]


@jax.custom_vjp
def depthwise_conv2d(x: Map, kernel: Kernel) -> Map:
    """Depthwise convolution, stride 1, zero padding that keeps the size; sums in float32.

    Args:
        x: the map.
        kernel: odd height and width, flax's layout.

    Returns:
        A map of x's shape and type. `reference.depthwise_conv2d` is the specification.

    Raises:
        ValueError: an even kernel, which has no middle.
    """
    if not kernel.shape[0] % 2 or not kernel.shape[1] % 2:
        raise ValueError(f"depthwise_conv2d needs odd kernel sizes, got {kernel.shape[0]}x{kernel.shape[1]}.")
    return _grouped_convolution(x, kernel) if _by_convolution() else _shifted_products(x, kernel)


def _by_convolution() -> bool:
    # Chosen when it is traced: of both in one program, the other's operations would be counted too.
    return chosen_here("depthwise") == "convolution"


def _shifted_products(x: Map, kernel: Kernel) -> Map:
    total = sum(
        window.astype(jnp.float32) * kernel[i, j, 0].astype(jnp.float32) for i, j, window in _windows(x, kernel)
    )
    return jnp.asarray(total, x.dtype)


def _grouped_convolution(x: Map, kernel: Kernel) -> Map:
    """cuDNN sums in float32; the kernel is of the map's type, and so is its gradient."""
    return jax.lax.conv_general_dilated(
        x,
        kernel.astype(x.dtype),
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def _windows(x: Array, kernel: Array) -> list[tuple[int, int, Array]]:
    """The input as each tap of the kernel sees it: (row of the tap, column of the tap, shifted x)."""
    kernel_height, kernel_width = kernel.shape[:2]
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (kernel_height // 2,) * 2, (kernel_width // 2,) * 2, (0, 0)))
    return [(i, j, padded[:, i : i + height, j : j + width]) for i in range(kernel_height) for j in range(kernel_width)]


def _forward(x: Map, kernel: Kernel) -> tuple[Map, tuple[Map, Kernel]]:
    return depthwise_conv2d(x, kernel), (x, kernel)


def _backward(saved: tuple[Map, Kernel], dy: Map) -> tuple[Map, Kernel]:
    x, kernel = saved
    dx = depthwise_conv2d(dy, kernel[::-1, ::-1])
    gradient = _convolution_gradient if _by_convolution() else _shifted_gradient
    return dx, gradient(x, kernel, dy)


def _shifted_gradient(x: Map, kernel: Kernel, dy: Map) -> Kernel:
    """Of the kernel."""
    dy = dy.astype(jnp.float32)
    taps = [
        by_platform(
            "sums", overrides(), {"reduction": _sum, "by_halves": _sum_by_halves}, window.astype(jnp.float32) * dy
        )
        for _, _, window in _windows(x, kernel)
    ]
    return jnp.stack(taps).reshape(kernel.shape).astype(kernel.dtype)


def _convolution_gradient(x: Map, kernel: Kernel, dy: Map) -> Kernel:
    return jax.vjp(lambda kernel: _grouped_convolution(x, kernel), kernel)[1](dy)[0]


def _sum(x: Map) -> Float[Array, " channels"]:
    """Over all but the channels."""
    return x.sum(axis=(0, 1, 2))


def _sum_by_halves(x: Map) -> Float[Array, " channels"]:
    """The same for CPUs, on which a reduction is 20 times slower, whatever its axes.

    Adding one half of the pictures to the other becomes one vectorised pass over all of them, and a product with a row
    of ones adds up the positions. Where the batch is split over devices, whole maps travel between them: not for TPUs.
    """
    while len(x) > 1:
        half, rest = divmod(len(x), 2)
        added = x[:half] + x[half : 2 * half]
        x = jnp.concatenate([added, x[-1:]]) if rest else added
    positions = jax.lax.optimization_barrier(x).reshape(-1, x.shape[-1])
    return jnp.ones((len(positions),), jnp.float32) @ positions


depthwise_conv2d.defvjp(_forward, _backward)
