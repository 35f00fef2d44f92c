"""Weights in and out: PyTorch checkpoints of upstream's, safetensors, model directories, workdirs, the hub."""

from rmt_jax.convert.destinations import write_weights
from rmt_jax.convert.directories import checkpoint_folder, has_checkpoint
from rmt_jax.convert.names import from_torch, relpos_constants, to_torch, torch_key
from rmt_jax.convert.pretrained import load_pretrained
from rmt_jax.convert.sources import read_weights
from rmt_jax.convert.weights import Fit, Weights, load_into

__all__ = [
    "Fit",
    "Weights",
    "checkpoint_folder",
    "from_torch",
    "has_checkpoint",
    "load_into",
    "load_pretrained",
    "read_weights",
    "relpos_constants",
    "to_torch",
    "torch_key",
    "write_weights",
]
