"""Multiply-accumulates of one picture in evaluation mode, counted as the tools did that made the paper's tables."""

import math
from typing import NamedTuple

from rmt_jax.models.fpn import FPN_FEATURES
from rmt_jax.models.segmentation import FPN_HEAD_FEATURES, POOL_BINS, UPER_FEATURES, SegmentationHead, check_segmentor
from rmt_jax.models.variants import RMTConfig


class Rule(NamedTuple):
    """What counts beside convolutions and linear layers: norms by element, and products by key of a query."""

    layer_norm: int
    batch_norm: int
    attention: int


FVCORE = Rule(layer_norm=5, batch_norm=2, attention=2)
LAYERS_ONLY = Rule(layer_norm=0, batch_norm=0, attention=0)


def count_flops(config: RMTConfig, height: int, width: int) -> int:
    """Of a classifier, as fvcore counts: with norms and attention, without softmax and activations."""
    total, sizes = _backbone_flops(config, height, width, FVCORE)
    tokens = math.prod(sizes[-1])
    total += tokens * config.proj_dim * (config.embed_dims[-1] + FVCORE.batch_norm)
    total += config.proj_dim * config.num_classes
    if config.aux_head:
        total += (
            tokens * config.num_classes * (config.embed_dims[-1] if config.aux_tap == "features" else config.proj_dim)
        )
    return total


def count_segmentor_flops(config: RMTConfig, head: SegmentationHead, height: int, width: int) -> int:
    """Of a segmentor, convolutions and linear layers only, as mmcv counts but for biases and norms (0.4 % and less).

    The auxiliary head does not run in evaluation mode. The paper's figures are of 512x2048 pixels, but those of
    Semantic FPN with rmt_t, which are of 512x512.

    Raises:
        ValueError: an unknown head, or a starred model.
    """
    check_segmentor(config, head)
    total, sizes = _backbone_flops(config, height, width, LAYERS_ONLY)
    positions = [math.prod(size) for size in sizes]
    heads = {"semantic_fpn": _semantic_fpn_flops, "upernet": _upernet_flops}
    return total + heads[head](config, positions)


def _backbone_flops(config: RMTConfig, height: int, width: int, rule: Rule) -> tuple[int, list[tuple[int, int]]]:
    """(multiply-accumulates, (height, width) of each of the four maps)."""
    dims, sizes = config.embed_dims, []
    half = dims[0] // 2
    height, width = math.ceil(height / 2), math.ceil(width / 2)
    total = height * width * half * (27 + 9 * half + 2 * rule.batch_norm)
    height, width = math.ceil(height / 2), math.ceil(width / 2)
    total += height * width * dims[0] * (9 * half + 9 * dims[0] + 2 * rule.batch_norm)
    for stage, dim in enumerate(dims):
        sizes.append((height, width))
        total += config.depths[stage] * _block_flops(config, stage, height, width, rule)
        if stage + 1 < len(dims):
            height, width = math.ceil(height / 2), math.ceil(width / 2)
            total += height * width * dims[stage + 1] * (9 * dim + rule.batch_norm)
    return total, sizes


def _block_flops(config: RMTConfig, stage: int, height: int, width: int, rule: Rule) -> int:
    dim, tokens = config.embed_dims[stage], height * width
    hidden = int(dim * config.mlp_ratios[stage])
    keys = width + height if config.decomposed[stage] else tokens
    position, lepe, norms = 9 * dim, 25 * dim, 2 * rule.layer_norm * dim
    retention = 4 * dim * dim + rule.attention * keys * dim
    ffn = 2 * dim * hidden + 9 * hidden
    return tokens * (position + lepe + norms + retention + ffn)


def _semantic_fpn_flops(config: RMTConfig, positions: list[int]) -> int:
    """Neck and head."""
    width, features = FPN_FEATURES, FPN_HEAD_FEATURES
    total = positions[0] * features * config.num_classes
    for level, (dim, count) in enumerate(zip(config.embed_dims, positions, strict=True)):
        total += count * width * (dim + 9 * width)
        for step in range(max(1, level)):  # each at twice the size of the one before
            total += 4**step * count * 9 * (features if step else width) * features
    return total


def _upernet_flops(config: RMTConfig, positions: list[int]) -> int:
    """The head; pooled maps have the same size whatever the picture's."""
    *finer, top = config.embed_dims
    features = UPER_FEATURES
    total = sum(bins * bins for bins in POOL_BINS) * top * features
    total += positions[-1] * 9 * (top + len(POOL_BINS) * features) * features
    for dim, count in zip(finer, positions[:-1], strict=True):
        total += count * features * (dim + 9 * features)
    return total + positions[0] * features * (9 * len(positions) * features + config.num_classes)
