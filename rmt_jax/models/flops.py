"""Multiply-accumulates of one picture, counted as fvcore counts them, which is what the paper's tables hold."""

import math

from rmt_jax.models.variants import RMTConfig

LAYER_NORM_COST = 5  # fvcore's figure for each element
BATCH_NORM_COST = 2  # in evaluation mode


def count_flops(config: RMTConfig, height: int, width: int) -> int:
    """Multiply-accumulates of one forward pass in evaluation mode; softmax and activations are not counted."""
    dims = config.embed_dims
    half = dims[0] // 2
    height, width = math.ceil(height / 2), math.ceil(width / 2)
    total = height * width * half * (27 + 9 * half + 2 * BATCH_NORM_COST)
    height, width = math.ceil(height / 2), math.ceil(width / 2)
    total += height * width * dims[0] * (9 * half + 9 * dims[0] + 2 * BATCH_NORM_COST)
    for stage, dim in enumerate(dims):
        total += config.depths[stage] * _block_flops(config, stage, height, width)
        if stage + 1 < len(dims):
            height, width = math.ceil(height / 2), math.ceil(width / 2)
            total += height * width * dims[stage + 1] * (9 * dim + BATCH_NORM_COST)
    tokens = height * width
    total += tokens * config.proj_dim * (dims[-1] + BATCH_NORM_COST) + config.proj_dim * config.num_classes
    if config.aux_head:
        total += tokens * config.num_classes * (dims[-1] if config.aux_tap == "features" else config.proj_dim)
    return total


def _block_flops(config: RMTConfig, stage: int, height: int, width: int) -> int:
    dim, tokens = config.embed_dims[stage], height * width
    hidden = int(dim * config.mlp_ratios[stage])
    keys = width + height if config.decomposed[stage] else tokens
    position, lepe, norms = 9 * dim, 25 * dim, 2 * LAYER_NORM_COST * dim
    retention = 4 * dim * dim + 2 * keys * dim
    ffn = 2 * dim * hidden + 9 * hidden
    return tokens * (position + lepe + norms + retention + ffn)
