"""RMT models as Flax NNX modules."""

from rmt_jax.models.attention import attention_map, decay_map
from rmt_jax.models.block import Block, Retention
from rmt_jax.models.block_loop import Gather, Pictures, Remat, Run
from rmt_jax.models.classifier import Classifier
from rmt_jax.models.detection import CascadeMaskRCNN, DetectionHead, Detector, MaskRCNN, RetinaNet
from rmt_jax.models.detection_heads import BoxHead, DenseOutputs, MaskHead, RetinaHead, RPNHead
from rmt_jax.models.factory import AnyModel, abstract_model, build_model, create_model, task_of
from rmt_jax.models.fpn import FPN
from rmt_jax.models.layers import DepthwiseConv2d, LayerNorm
from rmt_jax.models.rmt import Backbone, FeatureInfo, Stage
from rmt_jax.models.segmentation import FCNHead, SegmentationHead, Segmentor, SemanticFPNHead, UPerHead
from rmt_jax.models.variants import RUN_TIME_FIELDS, RMTConfig, list_models, variant

__all__ = [
    "FPN",
    "RUN_TIME_FIELDS",
    "AnyModel",
    "Backbone",
    "Block",
    "BoxHead",
    "CascadeMaskRCNN",
    "Classifier",
    "DenseOutputs",
    "DepthwiseConv2d",
    "DetectionHead",
    "Detector",
    "FCNHead",
    "FeatureInfo",
    "Gather",
    "LayerNorm",
    "MaskHead",
    "MaskRCNN",
    "Pictures",
    "RMTConfig",
    "RPNHead",
    "Remat",
    "Retention",
    "RetinaHead",
    "RetinaNet",
    "Run",
    "SegmentationHead",
    "Segmentor",
    "SemanticFPNHead",
    "Stage",
    "UPerHead",
    "abstract_model",
    "attention_map",
    "build_model",
    "create_model",
    "decay_map",
    "list_models",
    "task_of",
    "variant",
]
