"""Weights between upstream's PyTorch names and ours: one table, read in both directions.

Every one of our arrays has exactly one upstream key, made by `RENAMES`. Conversion is strict both ways: a key that
nothing takes, a parameter that nothing fills and a wrong shape are all errors, reported together.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from rmt_jax.models import Classifier, RMTConfig
from rmt_jax.ops import log_decay_rates, rotary_angles

# (pattern in our path, replacement), applied in order; then "/" becomes ".".
RENAMES: tuple[tuple[str, str], ...] = (
    (r"^backbone/", r""),
    (r"/(pos|lepe|dwconv)/(kernel|bias)$", r"/\1/conv/\2"),
    (r"/(kernel|scale)$", r"/weight"),
    (r"/(mean|var)$", r"/running_\1"),
)

# Entries of upstream's files that carry no weights: constants, which are checked, and step counters.
CONSTANTS = re.compile(r"^layers\.(\d)\.Relpos\.(angle|decay)$")
COUNTERS = re.compile(r"\.num_batches_tracked$")

# Upstream computes its constants in float32 on another machine; further off means another architecture.
CONSTANT_RTOL = 1e-5


def torch_key(path: str) -> str:
    """Upstream's name of one of our arrays: backbone/layers/0/.../pos/kernel -> layers.0.....pos.conv.weight."""
    for pattern, replacement in RENAMES:
        path = re.sub(pattern, replacement, path)
    return path.replace("/", ".")


def flat_paths(tree: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(path, leaf) of a nested dict, with "/" between the keys."""
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from flat_paths(value, f"{path}/")
        else:
            yield path, value


def model_arrays(model: nnx.Module) -> dict[str, Any]:
    """Parameters and BatchNorm statistics of a model (or of an abstract one) as one nested dict."""
    return nnx.to_pure_dict(nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat)))


def to_torch(tree: Mapping[Any, Any]) -> dict[str, np.ndarray]:
    """Our arrays (parameters, statistics, gradients or moments) under upstream's names and in its layout, as copies."""
    return {
        torch_key(path): np.array(_to_torch_layout(path, np.asarray(leaf)), order="C")
        for path, leaf in flat_paths(tree)
    }


def from_torch(state_dict: Mapping[str, np.ndarray], model: Classifier) -> None:
    """Fill a model with upstream's weights, in place.

    Args:
        state_dict: {upstream's key: array}, complete.
        model: of the same architecture and number of classes.

    Raises:
        ValueError: naming every key that the model does not have, every parameter that the dict does not fill, every
            wrong shape and every Relpos constant that differs from ours. The model is unchanged then.
    """
    tree = model_arrays(model)
    wanted = {torch_key(path): (path, leaf) for path, leaf in flat_paths(tree)}
    constants = relpos_constants(model.config)
    problems = [f"missing: {key} (for {path})" for key, (path, _) in wanted.items() if key not in state_dict]
    filled: dict[str, np.ndarray] = {}
    for key, value in state_dict.items():
        array = np.asarray(value)
        if key in wanted:
            path, leaf = wanted[key]
            expected = _torch_shape(path, leaf.shape)
            if array.shape != expected:
                problems.append(f"shape: {key} is {array.shape}, this model needs {expected}")
            else:
                filled[path] = _from_torch_layout(path, array)
        elif CONSTANTS.match(key):
            problems += _constant_problems(key, array, constants)
        elif not COUNTERS.search(key):
            problems.append(f"unexpected: {key} {array.shape}")
    if problems:
        raise ValueError(f"These weights do not fit the model, {len(problems)} problem(s):\n  " + "\n  ".join(problems))
    nnx.update(model, _map_leaves(tree, filled))


def relpos_constants(config: RMTConfig) -> dict[str, np.ndarray]:
    """Upstream's registered buffers, which we compute instead of storing."""
    constants = {}
    for stage, (dim, heads, span) in enumerate(
        zip(config.embed_dims, config.num_heads, config.decay_spans, strict=True)
    ):
        constants[f"layers.{stage}.Relpos.angle"] = np.repeat(rotary_angles(dim // heads), 2)
        constants[f"layers.{stage}.Relpos.decay"] = log_decay_rates(heads, config.decay_start, span)
    return constants


def _constant_problems(key: str, array: np.ndarray, constants: Mapping[str, np.ndarray]) -> list[str]:
    ours = constants.get(key)
    if ours is None or ours.shape != array.shape:
        return [f"constant: {key} is {array.shape}, this model's is {None if ours is None else ours.shape}"]
    error = float(np.max(np.abs(array - ours) / np.abs(ours)))
    if error <= CONSTANT_RTOL:
        return []
    return [f"constant: {key} differs by {error:.1e} (relative) from this model's: another architecture"]


def _is_layer_scale(path: str) -> bool:
    return re.search(r"/gamma_[12]$", path) is not None


def _torch_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    return _to_torch_layout(path, np.broadcast_to(np.float32(0), shape)).shape


def _to_torch_layout(path: str, array: np.ndarray) -> np.ndarray:
    if _is_layer_scale(path):
        return array.reshape(1, 1, 1, -1)
    if array.ndim == 4:
        return array.transpose(3, 2, 0, 1)  # height width in out -> out in height width
    return array.T if array.ndim == 2 else array


def _from_torch_layout(path: str, array: np.ndarray) -> np.ndarray:
    if _is_layer_scale(path):
        return array.reshape(-1)
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    return array.T if array.ndim == 2 else array


def _map_leaves(tree: Mapping[Any, Any], values: Mapping[str, np.ndarray], prefix: str = "") -> dict[Any, Any]:
    return {
        key: _map_leaves(value, values, f"{prefix}{key}/")
        if isinstance(value, Mapping)
        else jnp.array(values[f"{prefix}{key}"], value.dtype)  # a copy: asarray would share memory on a CPU
        for key, value in tree.items()
    }
