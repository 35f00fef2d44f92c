"""Multiply-accumulates of one picture in evaluation mode, counted as the tools did that made the paper's tables."""

import math
from typing import NamedTuple

from rmt_jax.models.detection import DetectionHead, check_detector
from rmt_jax.models.detection_heads import (
    BOX_SIZE,
    BOX_WIDENING,
    MASK_SIZE,
    NUM_CONVS,
    RETINA_ANCHORS,
    RPN_ANCHORS,
)
from rmt_jax.models.segmentation import POOL_BINS, SegmentationHead, check_segmentor
from rmt_jax.models.variants import RMTConfig


class Rule(NamedTuple):
    """What counts beside convolutions and linear layers: norms by element, and products by key of a query."""

    layer_norm: int
    batch_norm: int
    attention: int


FVCORE = Rule(layer_norm=5, batch_norm=2, attention=2)
LAYERS_ONLY = Rule(layer_norm=0, batch_norm=0, attention=0)

BOX_REGIONS, MASK_REGIONS = 1000, 100  # of a picture, as mmdet counts


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


def count_detector_flops(config: RMTConfig, head: DetectionHead, height: int, width: int) -> int:
    """Of a detector, convolutions and linear layers only, as mmcv counts but for biases and norms.

    Box heads work on 1000 regions, each of them in every stage of a cascade, mask heads on 100. RoIAlign does not
    count. The paper's figures are of 1280x800 pixels.

    Raises:
        ValueError: an unknown head, or a starred model.
    """
    check_detector(config, head)
    total, sizes = _backbone_flops(config, height, width, LAYERS_ONLY)
    if head == "retinanet":
        return total + _retinanet_flops(config, sizes)
    stages = 3 if head == "cascade_mask_rcnn" else 1
    box = _box_flops(config, num_convs=NUM_CONVS if stages > 1 else 0, num_fcs=1 if stages > 1 else 2)
    regions = BOX_REGIONS * box + MASK_REGIONS * _mask_flops(config)
    return total + _rpn_flops(config, sizes) + stages * regions


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
    width, features = config.pyramid_features, config.pyramid_features // 2
    total = positions[0] * features * config.num_classes
    for level, (dim, count) in enumerate(zip(config.embed_dims, positions, strict=True)):
        total += count * width * (dim + 9 * width)
        for step in range(max(1, level)):  # each at twice the size of the one before
            total += 4**step * count * 9 * (features if step else width) * features
    return total


def _upernet_flops(config: RMTConfig, positions: list[int]) -> int:
    """The head; pooled maps have the same size whatever the picture's."""
    *finer, top = config.embed_dims
    features = 2 * config.pyramid_features
    total = sum(bins * bins for bins in POOL_BINS) * top * features
    total += positions[-1] * 9 * (top + len(POOL_BINS) * features) * features
    for dim, count in zip(finer, positions[:-1], strict=True):
        total += count * features * (dim + 9 * features)
    return total + positions[0] * features * (9 * len(positions) * features + config.num_classes)


def _pyramid_flops(dims: tuple[int, ...], positions: list[int], width: int) -> int:
    """Of the levels that have a map, and `width` channels."""
    return sum(count * width * (dim + 9 * width) for dim, count in zip(dims, positions, strict=True))


def _retinanet_flops(config: RMTConfig, sizes: list[tuple[int, int]]) -> int:
    """Neck and head."""
    dims, width = config.embed_dims[1:], config.pyramid_features
    levels = [*sizes[1:], _halved(sizes[-1]), _halved(_halved(sizes[-1]))]
    positions = [math.prod(size) for size in levels]
    total = _pyramid_flops(dims, positions[:3], width) + 9 * width * (positions[3] * dims[-1] + positions[4] * width)
    outputs = RETINA_ANCHORS * (config.num_classes + 4)
    return total + sum(positions) * 9 * width * (2 * NUM_CONVS * width + outputs)


def _rpn_flops(config: RMTConfig, sizes: list[tuple[int, int]]) -> int:
    """Neck and RPN."""
    width, positions = config.pyramid_features, [math.prod(size) for size in [*sizes, _halved(sizes[-1])]]
    return _pyramid_flops(config.embed_dims, positions[:4], width) + sum(positions) * width * (
        9 * width + RPN_ANCHORS * 5
    )


def _box_flops(config: RMTConfig, *, num_convs: int, num_fcs: int) -> int:
    """Of one region."""
    area, width = BOX_SIZE**2, config.pyramid_features
    hidden = BOX_WIDENING * width
    linear = area * width + (num_fcs - 1) * hidden + 5 * config.num_classes + 1
    return num_convs * area * 9 * width * width + linear * hidden


def _mask_flops(config: RMTConfig) -> int:
    """Of one region."""
    area, width = MASK_SIZE**2, config.pyramid_features
    return area * width * ((9 * NUM_CONVS + 4) * width + 4 * config.num_classes)


def _halved(size: tuple[int, int]) -> tuple[int, int]:
    """Rounded up."""
    return math.ceil(size[0] / 2), math.ceil(size[1] / 2)
