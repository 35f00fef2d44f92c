"""Writing weights: a model directory, a safetensors file or a PyTorch file. Complete under its name, or not there."""

import contextlib
import json
import os
import pathlib
import shutil
import uuid
from collections.abc import Iterator
from typing import Any

import numpy as np
import safetensors.numpy

from rmt_jax.convert.directories import is_model_directory, write_directory
from rmt_jax.convert.torch_file import require_torch, write_torch
from rmt_jax.convert.weights import Weights

TORCH_SUFFIXES = (".pth", ".pt")
FILE_SUFFIXES = (".safetensors", *TORCH_SUFFIXES)
_OTHER_SUFFIXES = (".bin", ".ckpt", ".h5", ".json", ".msgpack", ".npz", ".onnx", ".pkl", ".tar", ".zip")


def is_torch_layout(destination: pathlib.Path) -> bool:
    """Whether a destination holds upstream's names and layouts; a model directory holds ours."""
    return destination.suffix in FILE_SUFFIXES


def check_destination(destination: pathlib.Path, source: pathlib.Path | None = None, *, force: bool) -> None:
    """Everything about a destination that can be known before work starts.

    Raises:
        FileExistsError: something is there, and must not be replaced.
        ImportError: a .pth needs PyTorch.
        ValueError: a name that cannot be meant.
    """
    if destination.suffix in _OTHER_SUFFIXES:
        raise ValueError(
            f"{destination}: cannot write {destination.suffix}. Give a name that ends with .safetensors or .pth, or a "
            f"directory."
        )
    if destination.suffix in TORCH_SUFFIXES:
        require_torch(f"Writing {destination}")
    parent = next(folder for folder in destination.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ValueError(f"{destination} cannot be written: {parent} is not a directory that you may write in.")
    if not os.path.lexists(destination):
        return
    if source is not None and source.exists() and destination.samefile(source):
        raise ValueError(f"{destination} is the source itself: give another destination.")
    if not force:
        raise FileExistsError(f"{destination} exists: give another destination, or --force to replace it.")
    replaceable = is_model_directory(destination) if not is_torch_layout(destination) else destination.is_file()
    if not replaceable:
        raise FileExistsError(
            f"{destination} exists and is no {'file' if is_torch_layout(destination) else 'model directory'}, so it is "
            f"not replaced, --force or not: give another destination."
        )


def write_weights(weights: Weights, destination: pathlib.Path, *, force: bool = False) -> None:
    """Write weights in the form that the destination's name asks for: .safetensors, .pth, .pt, or a model directory.

    Files hold upstream's names and layouts, a .pth as upstream saves it: {"model": state dict}, of segmentors and
    detectors as mmcv does: {"meta": {"CLASSES": names}, "state_dict": state dict}. All forms hold the architecture and
    the provenance.

    Raises:
        FileExistsError, ImportError, ValueError: see `check_destination`.
        OSError: it cannot be written; nothing stays behind.
    """
    check_destination(destination, force=force)
    destination.parent.mkdir(parents=True, exist_ok=True)
    with _replacing(destination) as partial:
        if not is_torch_layout(destination):
            write_directory(partial, weights)
        elif destination.suffix == ".safetensors":
            arrays = {key: np.asarray(array, order="C") for key, array in weights.to_torch().items()}
            # One entry only: safetensors writes several in random order, and the same source shall make the same bytes.
            safetensors.numpy.save_file(arrays, partial, metadata={"rmt_jax": json.dumps(weights.card())})
            partial.chmod(0o666 & ~_umask())  # safetensors makes files that only their owner can read
        else:
            write_torch(partial, weights.to_torch(), json.dumps(weights.card()), meta=_meta(weights))


def _meta(weights: Weights) -> dict[str, Any] | None:
    """What mmcv keeps beside a state dict, as far as it is known; None where a checkpoint is not of mmcv's kind."""
    if weights.task not in ("segmentation", "detection"):
        return None
    return {} if weights.class_names is None else {"CLASSES": weights.class_names}


@contextlib.contextmanager
def _replacing(destination: pathlib.Path) -> Iterator[pathlib.Path]:
    """A name beside the destination that becomes it when all went well, and goes when not."""
    partial = destination.with_name(f".{destination.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        yield partial
        if destination.is_dir():  # a directory cannot be replaced in one step: first out of the way, then gone
            old = destination.with_name(f"{partial.name}.old")
            os.rename(destination, old)
            os.rename(partial, destination)
            shutil.rmtree(old)
        else:
            os.replace(partial, destination)
    finally:
        if partial.is_dir():
            shutil.rmtree(partial)
        partial.unlink(missing_ok=True)


def _umask() -> int:
    """Permissions that new files of this process lack; there is no way to ask without setting them."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
