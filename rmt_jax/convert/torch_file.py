"""Reading and writing PyTorch's files. Files are untrusted: nothing in them is ever run."""

import argparse
import pathlib
import pickle
import re
import warnings
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

# Upstream saves its command line options; it is the one class beyond PyTorch's own that is let in.
ALLOWED_CLASSES = (argparse.Namespace,)

_ZIP = b"PK\x03\x04"


def require_torch(why: str) -> None:
    """Raises ImportError with what to install, if PyTorch is missing."""
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise ImportError(f"{why} needs PyTorch: pip install 'rmt-jax[torch]' ({error}).") from error


def read_torch(path: pathlib.Path) -> Any:
    """What `torch.save` wrote: tensors as numpy arrays, all else as it is.

    Arrays are views of the file where its format allows that, so a large file with an optimiser in it costs nothing.

    Raises:
        ImportError: no PyTorch.
        ValueError: not such a file, damaged, or with objects that are not allowed.
    """
    require_torch(f"Reading {path}")
    import torch

    with path.open("rb") as file:
        start = file.read(len(_ZIP))
    try:
        with torch.serialization.safe_globals(list(ALLOWED_CLASSES)), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old formats: the user cannot mend the file
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=start == _ZIP)
    except pickle.UnpicklingError as error:
        raise ValueError(_refusal(str(error))) from error
    # Damaged pickles raise whatever the interpreted garbage leads to: no list of types would be complete.
    except Exception as error:
        raise ValueError(
            f"This is no PyTorch file, or a damaged one (an incomplete download?): {_first_line(error)}"
        ) from error
    return _to_numpy(content)


def write_torch(
    path: pathlib.Path, arrays: Mapping[str, np.ndarray], card: str, *, meta: Mapping[str, Any] | None = None
) -> None:
    """A checkpoint as upstream's: {"model": state dict}, with the card beside it.

    With `meta` it is one as mmcv's: {"meta": meta, "state_dict": state dict}.
    """
    import torch

    # Writable and contiguous, as PyTorch wants them; a copy only where they are not.
    state_dict = {key: torch.from_numpy(np.require(array, requirements=["C", "W"])) for key, array in arrays.items()}
    content = {"model": state_dict} if meta is None else {"meta": dict(meta), "state_dict": state_dict}
    torch.save(content | {"rmt_jax": card}, path)


def _refusal(message: str) -> str:
    blocked = re.search(r"(?:GLOBAL|global|class) ([\w.]+)", message)
    if blocked is None:
        return "This is no PyTorch file, or a damaged one (an incomplete download?)."
    return (
        f"The file holds {blocked[1]}, which is not a weight: the file could run code, so it is not read. "
        f"If you trust it, load it where it was made and save its state dict alone."
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].split(". ")[0] if lines else type(error).__name__


def _to_numpy(value: Any) -> Any:
    import torch

    if isinstance(value, torch.Tensor):
        return _array(value)
    if isinstance(value, Mapping):
        return {key: _to_numpy(item) for key, item in value.items()}
    return value


def _array(tensor: Any) -> Any:
    """A tensor's values, sharing memory; a tensor that NumPy cannot hold (sparse, quantised) stays one."""
    import torch

    if tensor.layout != torch.strided or tensor.is_quantized:
        return tensor
    tensor = tensor.detach().resolve_conj().resolve_neg()
    if tensor.dtype == torch.bfloat16:  # NumPy has none of its own
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
