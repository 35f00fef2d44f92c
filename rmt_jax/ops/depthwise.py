"""Depthwise convolution with its own backward pass: shifted multiply-adds, or on GPUs a kernel.

Measured on CPUs and in compiled TPU programs, a sum of shifted products moves fewer bytes than XLA's grouped
convolution, but only forward: its automatic derivative moves five times more. Hence the hand-written rule. What goes in
and comes out is made into arrays on CPUs, where XLA would else work it out again for every tap. On GPUs XLA
computes what comes before, such as a GELU, once for every tap, and cuDNN takes many times as long as the memory needs:
see `triton_depthwise`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from rmt_jax.ops.formulations import chosen_here
from rmt_jax.ops.linear import add_parts, computed_once, sum_by_parts, sum_rows
from rmt_jax.ops.triton_depthwise import triton_depthwise, triton_depthwise_gradients

Map = Float[Array, "batch height width channels"]
Kernel = Float[Array, "kernel_height kernel_width 1 channels"]
Bias = Float[Array, " channels"]
Taps = Float[Array, "taps channels"]


def depthwise_conv2d(x: Map, kernel: Kernel, bias: Bias, *, residual: bool = False) -> Map:
    """Depthwise convolution with a bias, stride 1, zero padding that keeps the size; sums in float32.

    Args:
        x: the map.
        kernel: odd height and width, flax's layout.
        bias: of each channel.
        residual: add x.

    Returns:
        A map of x's shape and type. `reference.depthwise_conv2d` is the specification.

    Raises:
        ValueError: an even kernel, which has no middle.
    """
    if not kernel.shape[0] % 2 or not kernel.shape[1] % 2:
        raise ValueError(f"depthwise_conv2d needs odd kernel sizes, got {kernel.shape[0]}x{kernel.shape[1]}.")
    return _depthwise(residual, x, kernel, bias)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _depthwise(residual: bool, x: Map, kernel: Kernel, bias: Bias) -> Map:
    return _convolved(residual, x, kernel, bias)


def _forward(residual: bool, x: Map, kernel: Kernel, bias: Bias) -> tuple[Map, tuple[Map, Kernel, Bias]]:
    return _depthwise(residual, x, kernel, bias), (x, kernel, bias)


def _backward(residual: bool, saved: tuple[Map, Kernel, Bias], dy: Map) -> tuple[Map, Kernel, Bias]:
    x, kernel, bias = saved
    x, dy = computed_once((x, dy))
    dx = _convolved(residual, dy, kernel[::-1, ::-1], jnp.zeros_like(bias))
    gradients = {
        "shifts": _shifted_gradients,
        "convolution": _grouped_gradients,
        "triton": triton_depthwise_gradients,
    }
    rows, columns = kernel.shape[:2]
    dkernel, dbias = gradients[chosen_here("depthwise")](x, dy, (rows, columns))
    return dx, dkernel.astype(kernel.dtype), dbias.astype(bias.dtype)


_depthwise.defvjp(_forward, _backward)


def _convolved(residual: bool, x: Map, kernel: Kernel, bias: Bias) -> Map:
    formulation = chosen_here("depthwise")
    if formulation == "convolution":
        y = _grouped_convolution(x, kernel) + bias.astype(x.dtype)
        return x + y if residual else y
    kernel, bias = kernel.astype(jnp.float32), bias.astype(jnp.float32)
    if residual:
        kernel = kernel + _middle(kernel)
    if formulation == "triton":
        return triton_depthwise(x, kernel, bias)
    return computed_once(_shifted_products(x, kernel, bias))


def _middle(kernel: Kernel) -> Float[np.ndarray, "kernel_height kernel_width 1 1"]:
    """The kernel that changes nothing."""
    rows, columns = kernel.shape[:2]
    middle = np.zeros((rows, columns, 1, 1), np.float32)
    middle[rows // 2, columns // 2] = 1
    return middle


def _shifted_products(x: Map, kernel: Kernel, bias: Bias) -> Map:
    rows, columns = kernel.shape[:2]
    total = sum(window.astype(jnp.float32) * kernel[i, j, 0] for i, j, window in _windows(x, (rows, columns)))
    return (total + bias).astype(x.dtype)


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


def _windows(x: Array, kernel_size: tuple[int, int]) -> list[tuple[int, int, Array]]:
    """The input as each tap of the kernel sees it: (row of the tap, column of the tap, shifted x)."""
    rows, columns = kernel_size
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (rows // 2,) * 2, (columns // 2,) * 2, (0, 0)))
    return [(i, j, padded[:, i : i + height, j : j + width]) for i in range(rows) for j in range(columns)]


def _shifted_gradients(x: Map, dy: Map, kernel_size: tuple[int, int]) -> tuple[Kernel, Bias]:
    """Of kernel and bias."""
    sums = {"reduction": _tap_sums, "by_parts": _tap_sums_by_parts}
    taps = sums[chosen_here("sums")](kernel_size, x, dy)
    return taps.reshape(*kernel_size, 1, -1), sum_rows(dy)


def _grouped_gradients(x: Map, dy: Map, kernel_size: tuple[int, int]) -> tuple[Kernel, Bias]:
    zeros = jnp.zeros((*kernel_size, 1, x.shape[-1]), x.dtype)
    return jax.vjp(functools.partial(_grouped_convolution, x), zeros)[1](dy)[0], sum_rows(dy)


def _tap_products(kernel_size: tuple[int, int], x: Map, dy: Map) -> list[Map]:
    """What has to be added up for each tap."""
    factor = dy.astype(jnp.float32)
    return [window.astype(jnp.float32) * factor for _, _, window in _windows(x, kernel_size)]


def _tap_sums(kernel_size: tuple[int, int], x: Map, dy: Map) -> Taps:
    return jnp.stack([product.sum(axis=(0, 1, 2)) for product in _tap_products(kernel_size, x, dy)])


def _tap_sums_by_parts(kernel_size: tuple[int, int], x: Map, dy: Map) -> Taps:
    """The same for CPUs. Where the batch is split over devices, whole maps travel between them: not for TPUs."""
    taps = [product.reshape(-1, *product.shape[2:]) for product in _tap_products(kernel_size, x, dy)]
    few = jnp.stack(add_parts(add_parts(taps)), axis=2)
    return sum_by_parts(few.reshape(-1, *few.shape[2:]))
