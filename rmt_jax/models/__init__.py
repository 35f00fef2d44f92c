"""RMT models as Flax NNX modules."""

from rmt_jax.models.attention import attention_map, decay_map
from rmt_jax.models.blocks import Gather, Remat
from rmt_jax.models.classifier import Classifier
from rmt_jax.models.factory import abstract_model, build_model, create_model
from rmt_jax.models.rmt import Backbone, Block, FeatureInfo, Retention, Stage
from rmt_jax.models.variants import RUN_TIME_FIELDS, RMTConfig, list_models, variant

__all__ = [
    "RUN_TIME_FIELDS",
    "Backbone",
    "Block",
    "Classifier",
    "FeatureInfo",
    "Gather",
    "RMTConfig",
    "Remat",
    "Retention",
    "Stage",
    "abstract_model",
    "attention_map",
    "build_model",
    "create_model",
    "decay_map",
    "list_models",
    "variant",
]
