"""Upstream's PyTorch names and layouts, and ours: one table, read in both directions.

Every one of our arrays has exactly one upstream key, made by `RENAMES`. Conversion is strict both ways: a key that
nothing takes, a parameter that nothing fills and a wrong shape are all errors, reported together.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rmt_jax.models import AnyModel, RMTConfig, task_of
from rmt_jax.models.arrays import flat_paths, model_arrays, nest
from rmt_jax.models.detection_heads import BOX_SIZE
from rmt_jax.ops import log_decay_rates, rotary_angles

# (pattern in our path, replacement), applied in order; then "/" becomes ".".
RENAMES: tuple[tuple[str, str], ...] = (
    (r"/(pos|lepe|dwconv)/(kernel|bias)$", r"/\1/conv/\2"),
    (r"/(kernel|scale)$", r"/weight"),
    (r"/(mean|var)$", r"/running_\1"),
)

# Entries of upstream's files that carry no weights: constants, which are checked, and step counters.
CONSTANTS = re.compile(r"^(backbone\.)?layers\.(\d)\.Relpos\.(angle|decay)$")
COUNTERS = re.compile(r"\.num_batches_tracked$")

# Upstream computes its constants in float32 on another machine; further off means another architecture.
CONSTANT_RTOL = 1e-5

# What only one kind of segmentor or detector has, in upstream's keys and in our paths: the kind as `task_of` gives it.
KINDS_OF_HEADS: tuple[tuple[str, tuple[str, str]], ...] = (
    (r"decode_head[./]scale_heads[./]", ("segmentation", "semantic_fpn")),
    (r"decode_head[./]psp_modules[./]", ("segmentation", "upernet")),
    (r"bbox_head[./]retina_cls[./]", ("detection", "retinanet")),
    (r"roi_head[./]mask_head[./]conv_logits[./]", ("detection", "mask_rcnn")),
    (r"roi_head[./]mask_head[./]2[./]conv_logits[./]", ("detection", "cascade_mask_rcnn")),
)

# Regions of a box head are flattened: upstream's in the order (channels, height, width), ours as (height, width,
# channels).
FLATTENED = re.compile(r"roi_head/bbox_head/(\d/)?shared_fcs/0/kernel$")
TRANSPOSED = re.compile(r"roi_head/mask_head/(\d/)?upsample/kernel$")

FLOATS = ("float16", "bfloat16", "float32", "float64")


class Transform(NamedTuple):
    """How an array is laid out on the two sides; `name` tells it from upstream's side."""

    name: str
    to_torch: Callable[[np.ndarray], np.ndarray]
    from_torch: Callable[[np.ndarray], np.ndarray]


COPY = Transform("copy", lambda a: a, lambda a: a)
LINEAR = Transform("out in -> in out", np.transpose, np.transpose)
CONV = Transform(
    "out in height width -> height width in out", lambda a: a.transpose(3, 2, 0, 1), lambda a: a.transpose(2, 3, 1, 0)
)
CONV_TRANSPOSE = Transform(
    "in out height width -> height width in out", lambda a: a.transpose(2, 3, 0, 1), lambda a: a.transpose(2, 3, 0, 1)
)
FLATTENED_REGION = Transform(
    "out (channels height width) -> (height width channels) out",
    lambda a: a.reshape(BOX_SIZE, BOX_SIZE, -1, a.shape[1]).transpose(3, 2, 0, 1).reshape(a.shape[1], -1),
    lambda a: a.reshape(len(a), -1, BOX_SIZE, BOX_SIZE).transpose(2, 3, 1, 0).reshape(-1, len(a)),
)
LAYER_SCALE = Transform("1 1 1 channels -> channels", lambda a: a.reshape(1, 1, 1, -1), lambda a: a.reshape(-1))


class Conversion(NamedTuple):
    """Upstream's state dict, taken apart: our arrays by path, the entries without weights, and what does not fit."""

    arrays: dict[str, np.ndarray]
    buffers: dict[str, np.ndarray]
    problems: list[str]


def torch_key(path: str, task: str = "classification") -> str:
    """Upstream's name of one of our arrays: backbone/layers/0/.../pos/kernel -> layers.0.....pos.conv.weight.

    Only a classifier's names lose "backbone/", since upstream's classifier is its own backbone; a segmentor's and a
    detector's keep it, and a bare backbone's do not have it.
    """
    if task == "classification":
        path = path.removeprefix("backbone/")
    for pattern, replacement in RENAMES:
        path = re.sub(pattern, replacement, path)
    return path.replace("/", ".")


def transform(path: str, dimensions: int) -> Transform:
    """The change of layout of one of our arrays."""
    if re.search(r"/gamma_[12]$", path):
        return LAYER_SCALE
    if FLATTENED.match(path):
        return FLATTENED_REGION
    if TRANSPOSED.match(path):
        return CONV_TRANSPOSE
    return {2: LINEAR, 4: CONV}.get(dimensions, COPY)


def dense_task(names: Iterable[str]) -> tuple[str, str] | None:
    """Task and head that upstream's keys or our paths belong to, None where they are of none that we know."""
    names = list(names)
    return next((kind for pattern, kind in KINDS_OF_HEADS if any(re.match(pattern, name) for name in names)), None)


def to_torch(tree: Mapping[Any, Any], task: str = "classification") -> dict[str, np.ndarray]:
    """Our arrays (parameters, statistics, gradients or moments) under upstream's names and in its layout, as copies."""
    return {
        torch_key(path, task): np.array(transform(path, np.ndim(leaf)).to_torch(np.asarray(leaf)), order="C")
        for path, leaf in flat_paths(tree)
    }


def from_torch(state_dict: Mapping[str, np.ndarray], model: AnyModel) -> None:
    """Fill a model with upstream's weights, in place.

    Args:
        state_dict: {upstream's key: array}, complete.
        model: of the same architecture and number of classes.

    Raises:
        ValueError: naming every key that the model does not have, every parameter that the dict does not fill, every
            wrong shape and type, every NaN, and every Relpos constant that differs from ours. The model is unchanged
            then.
    """
    conversion = convert_state_dict(state_dict, model)
    raise_problems(conversion.problems)
    fill(model, conversion.arrays)


def convert_state_dict(state_dict: Mapping[str, np.ndarray], model: AnyModel) -> Conversion:
    """Upstream's arrays in our layout, as views where the layout allows it; the model gives paths and shapes only."""
    task, _ = task_of(model)
    wanted = {torch_key(path, task): (path, leaf.shape) for path, leaf in flat_paths(model_arrays(model))}
    constants = relpos_constants(model.config, task)
    arrays: dict[str, np.ndarray] = {}
    buffers: dict[str, np.ndarray] = {}
    problems = [f"missing: {key} (for {path})" for key, (path, _) in wanted.items() if key not in state_dict]
    for key, value in state_dict.items():
        if not isinstance(value, np.ndarray | np.generic | jax.Array):
            problems.append(f"type: {key} is a {type(value).__name__}, no array of numbers")
            continue
        array = np.asarray(value)
        if key in wanted:
            path, shape = wanted[key]
            found = _shape_problems(key, array, _torch_shape(path, shape))
            if not found:
                arrays[path] = transform(path, len(shape)).from_torch(as_float32(array))
                found = finite_problems(key, arrays[path])
            problems += found
        elif CONSTANTS.match(key):
            problems += _constant_problems(key, array, constants)
            buffers[key] = array
        elif COUNTERS.search(key) and array.ndim == 0:
            buffers[key] = array
        else:
            problems.append(f"unexpected: {key} {array.shape}")
    return Conversion(arrays, buffers, problems)


def raise_problems(problems: list[str], model: str = "the model") -> None:
    """Raises ValueError with all of them, if there are any."""
    if problems:
        raise ValueError(f"These weights do not fit {model}, {len(problems)} problem(s):\n  " + "\n  ".join(problems))


def fill(model: nnx.Module, arrays: Mapping[str, Any]) -> None:
    """Give a model copies of the arrays, by path; the model keeps what is not among them."""
    # Copies: asarray would share memory on a CPU.
    nnx.update(model, nest({path: jnp.array(array) for path, array in arrays.items()}))


def relpos_constants(config: RMTConfig, task: str = "classification") -> dict[str, np.ndarray]:
    """Upstream's registered buffers, which we compute instead of storing."""
    constants = {}
    prefix = "" if task in ("classification", "backbone") else "backbone."
    for stage, (dim, heads, span) in enumerate(
        zip(config.embed_dims, config.num_heads, config.decay_spans, strict=True)
    ):
        constants[f"{prefix}layers.{stage}.Relpos.angle"] = np.repeat(rotary_angles(dim // heads), 2)
        constants[f"{prefix}layers.{stage}.Relpos.decay"] = log_decay_rates(heads, config.decay_start, span)
    return constants


def as_float32(array: np.ndarray) -> np.ndarray:
    """The array itself where it is float32 already; what float32 cannot hold becomes infinite."""
    with np.errstate(over="ignore"):
        return array.astype(np.float32, copy=False)


def finite_problems(name: str, array: np.ndarray) -> list[str]:
    """What to say of an array with NaN or infinite values."""
    # A sum is finite only where every entry is, and needs no second array; in float64 it does not overflow.
    with np.errstate(invalid="ignore"):
        if np.isfinite(array.sum(dtype=np.float64)):
            return []
    return [f"not finite: {name} holds {np.count_nonzero(~np.isfinite(array))} NaN or infinite of {array.size} values"]


def _shape_problems(key: str, array: np.ndarray, expected: tuple[int, ...]) -> list[str]:
    if array.shape != expected:
        return [f"shape: {key} is {array.shape}, this model needs {expected}"]
    if array.dtype.name not in FLOATS:
        return [f"type: {key} is {array.dtype}, expected one of {', '.join(FLOATS)}"]
    return []


def _constant_problems(key: str, array: np.ndarray, constants: Mapping[str, np.ndarray]) -> list[str]:
    ours = constants.get(key)
    if ours is None or ours.shape != array.shape:
        return [f"constant: {key} is {array.shape}, this model's is {None if ours is None else ours.shape}"]
    # Files in half precision hold rounded constants.
    tolerance = max(CONSTANT_RTOL, float(jnp.finfo(array.dtype).eps)) if array.dtype.name in FLOATS else CONSTANT_RTOL
    error = float(np.max(np.abs(array.astype(np.float64) - ours) / np.abs(ours)))
    if error <= tolerance:
        return []
    return [f"constant: {key} differs by {error:.1e} (relative) from this model's: another architecture"]


def _torch_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    return transform(path, len(shape)).to_torch(np.broadcast_to(np.float32(0), shape)).shape
