"""RMT models as Flax NNX modules."""

from rmt_jax.models.attention import attention_map, decay_map
from rmt_jax.models.classifier import Classifier
from rmt_jax.models.factory import abstract_model, build_model, create_model
from rmt_jax.models.rmt import Backbone, FeatureInfo
from rmt_jax.models.variants import RMTConfig, list_models, variant

__all__ = [
    "Backbone",
    "Classifier",
    "FeatureInfo",
    "RMTConfig",
    "abstract_model",
    "attention_map",
    "build_model",
    "create_model",
    "decay_map",
    "list_models",
    "variant",
]
