"""RMT ("Retentive Networks Meet Vision Transformers", CVPR 2024) in JAX and Flax NNX."""

from rmt_jax.convert import load_pretrained
from rmt_jax.models import create_model, list_models
from rmt_jax.version import __version__

__all__ = ["__version__", "create_model", "list_models", "load_pretrained"]
