"""Array functions, jax only. `reference` holds the readable specification of each op with a faster formulation."""

from rmt_jax.ops.activation import gelu
from rmt_jax.ops.anchors import (
    RETINANET_SCALES,
    RPN_SCALES,
    anchor_boxes,
    anchors_inside,
    anchors_on_maps,
)
from rmt_jax.ops.assignment import Assignment, MatchRule, assign, prepend_ground_truths
from rmt_jax.ops.boxes import box_area, box_iou, clip_boxes, decode_boxes, encode_boxes, giou
from rmt_jax.ops.canvas import Valid, clear, inside, strided
from rmt_jax.ops.depthwise import depthwise_conv2d
from rmt_jax.ops.detections import Proposals, rcnn_detections, retinanet_detections, rpn_proposals
from rmt_jax.ops.erasing import random_erasing
from rmt_jax.ops.feed_forward import FFNWeights, fused_ffn
from rmt_jax.ops.layer_norm import layer_norm, residual_layer_norm
from rmt_jax.ops.linear import computed_once, linear
from rmt_jax.ops.losses import (
    giou_loss,
    l1_loss,
    sigmoid_cross_entropy,
    sigmoid_focal_loss,
    smooth_l1_loss,
    softmax_cross_entropy,
)
from rmt_jax.ops.manhattan import attend, masa
from rmt_jax.ops.masks import mask_coverage, mask_targets, unpack_bits
from rmt_jax.ops.mixing import blend, box_mask, box_share, draw_box, reverse_groups, swap_boxes
from rmt_jax.ops.nms import Detections, classwise_nms, greedy_nms
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
from rmt_jax.ops.roi_align import multilevel_roi_align, roi_align, roi_levels
from rmt_jax.ops.sampling import Samples, at_random, evenly, sample
from rmt_jax.ops.token_labels import token_targets
from rmt_jax.ops.triton_retention import triton_fits

__all__ = [
    "RETINANET_SCALES",
    "RPN_SCALES",
    "Assignment",
    "Detections",
    "FFNWeights",
    "Heads",
    "MatchRule",
    "Proposals",
    "Samples",
    "Valid",
    "adaptive_mean_pool",
    "anchor_boxes",
    "anchors_inside",
    "anchors_on_maps",
    "assign",
    "at_random",
    "attend",
    "axis_decay",
    "bilinear_matrix",
    "blend",
    "box_area",
    "box_iou",
    "box_mask",
    "box_share",
    "classwise_nms",
    "clear",
    "clip_boxes",
    "computed_once",
    "decode_boxes",
    "decomposed_retention",
    "depthwise_conv2d",
    "draw_box",
    "encode_boxes",
    "evenly",
    "ffn_fits",
    "fits",
    "full_retention",
    "full_retention_by_rows",
    "fused_ffn",
    "gelu",
    "giou",
    "giou_loss",
    "greedy_nms",
    "inside",
    "l1_loss",
    "layer_norm",
    "linear",
    "log_decay_rates",
    "manhattan_decay",
    "masa",
    "mask_coverage",
    "mask_targets",
    "multilevel_roi_align",
    "pairs_to_halves",
    "prepend_ground_truths",
    "random_erasing",
    "rcnn_detections",
    "residual_layer_norm",
    "resize_bilinear",
    "resize_nearest",
    "retention",
    "retinanet_detections",
    "reverse_groups",
    "roi_align",
    "roi_levels",
    "rotary_angles",
    "rotary_phase",
    "rotate",
    "rpn_proposals",
    "sample",
    "sigmoid_cross_entropy",
    "sigmoid_focal_loss",
    "smooth_l1_loss",
    "softmax_cross_entropy",
    "strided",
    "swap_boxes",
    "token_targets",
    "triton_fits",
    "unpack_bits",
]
