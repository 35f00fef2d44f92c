"""RMT ("Retentive Networks Meet Vision Transformers", CVPR 2024) in JAX and Flax NNX.

What is not needed is not imported: `import rmt_jax` alone does not bring in JAX, a name of this module does (PEP 562).
"""

import importlib
from typing import TYPE_CHECKING, Any

from rmt_jax.version import __version__

if TYPE_CHECKING:
    from rmt_jax.convert import load_pretrained
    from rmt_jax.models import create_model, list_models

__all__ = ["__version__", "create_model", "list_models", "load_pretrained"]

_HOME = {"create_model": "rmt_jax.models", "list_models": "rmt_jax.models", "load_pretrained": "rmt_jax.convert"}
_PARTS = ("convert", "data", "models", "ops", "tasks", "training")


def __getattr__(name: str) -> Any:
    """A public name, or a part of the package, imported when it is first asked for."""
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
    elif name in _PARTS:
        value = importlib.import_module(f"rmt_jax.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_PARTS})
