"""Array functions, jax only. `reference` holds the readable specification of each op with a faster formulation."""

from rmt_jax.ops.activation import gelu
from rmt_jax.ops.canvas import Valid, clear, inside, strided
from rmt_jax.ops.depthwise import depthwise_conv2d
from rmt_jax.ops.erasing import random_erasing
from rmt_jax.ops.feed_forward import FFNWeights, fused_ffn
from rmt_jax.ops.layer_norm import layer_norm
from rmt_jax.ops.linear import linear
from rmt_jax.ops.manhattan import attend, masa
from rmt_jax.ops.mixing import blend, box_mask, box_share, draw_box, reverse_groups, swap_boxes
from rmt_jax.ops.pallas_ffn import ffn_fits
from rmt_jax.ops.pallas_retention import fits
from rmt_jax.ops.resize import adaptive_mean_pool, bilinear_matrix, resize_bilinear, resize_nearest
from rmt_jax.ops.retention import (
    Heads,
    axis_decay,
    decomposed_retention,
    full_retention,
    full_retention_by_rows,
    log_decay_rates,
    manhattan_decay,
    pairs_to_halves,
    retention,
    rotary_angles,
    rotary_phase,
    rotate,
)
from rmt_jax.ops.token_labels import token_targets

__all__ = [
    "FFNWeights",
    "Heads",
    "Valid",
    "adaptive_mean_pool",
    "attend",
    "axis_decay",
    "bilinear_matrix",
    "blend",
    "box_mask",
    "box_share",
    "clear",
    "decomposed_retention",
    "depthwise_conv2d",
    "draw_box",
    "ffn_fits",
    "fits",
    "full_retention",
    "full_retention_by_rows",
    "fused_ffn",
    "gelu",
    "inside",
    "layer_norm",
    "linear",
    "log_decay_rates",
    "manhattan_decay",
    "masa",
    "pairs_to_halves",
    "random_erasing",
    "resize_bilinear",
    "resize_nearest",
    "retention",
    "reverse_groups",
    "rotary_angles",
    "rotary_phase",
    "rotate",
    "strided",
    "swap_boxes",
    "token_targets",
]
