"""Weights in and out: PyTorch checkpoints of upstream's, safetensors, model directories, workdirs, the hub."""

from rmt_jax.convert.destinations import write_weights
from rmt_jax.convert.directories import (
    CLASSES_FILE,
    checkpoint_folder,
    checkpoint_steps,
    has_checkpoint,
    workdir_classes,
)
from rmt_jax.convert.integrity import CHECKPOINT_ITEMS, find_damage, write_manifest
from rmt_jax.convert.names import from_torch, relpos_constants, to_torch, torch_key
from rmt_jax.convert.preprocessing import IMAGENET, DensePreprocessing, Preprocessing, run_preprocessing
from rmt_jax.convert.pretrained import load_pretrained
from rmt_jax.convert.sources import read_weights
from rmt_jax.convert.weights import Fit, Weights, class_differences, load_into, name_some

__all__ = [
    "CHECKPOINT_ITEMS",
    "CLASSES_FILE",
    "IMAGENET",
    "DensePreprocessing",
    "Fit",
    "Preprocessing",
    "Weights",
    "checkpoint_folder",
    "checkpoint_steps",
    "class_differences",
    "find_damage",
    "from_torch",
    "has_checkpoint",
    "load_into",
    "load_pretrained",
    "name_some",
    "read_weights",
    "relpos_constants",
    "run_preprocessing",
    "to_torch",
    "torch_key",
    "workdir_classes",
    "write_manifest",
    "write_weights",
]
