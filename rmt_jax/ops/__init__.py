"""Array functions, jax only. `reference` holds the readable specification of each op with a faster formulation."""

from rmt_jax.ops.activation import gelu
from rmt_jax.ops.depthwise import depthwise_conv2d
from rmt_jax.ops.mixing import box_mask, swap_box
from rmt_jax.ops.retention import (
    axis_decay,
    decomposed_retention,
    full_retention,
    log_decay_rates,
    manhattan_decay,
    retention,
    rotary_angles,
    rotary_phase,
    rotate,
)

__all__ = [
    "axis_decay",
    "box_mask",
    "decomposed_retention",
    "depthwise_conv2d",
    "full_retention",
    "gelu",
    "log_decay_rates",
    "manhattan_decay",
    "retention",
    "rotary_angles",
    "rotary_phase",
    "rotate",
    "swap_box",
]
