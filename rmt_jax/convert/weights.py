"""A model's weights outside a model, with all that is needed to build it: what is read, converted and written."""

import collections
import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from rmt_jax.convert.card import CARD_FORMAT
from rmt_jax.convert.names import COUNTERS, fill, finite_problems, raise_problems, relpos_constants, to_torch, torch_key
from rmt_jax.convert.preprocessing import (
    DENSE_SCALES,
    IMAGENET,
    DensePreprocessing,
    Preprocessing,
)
from rmt_jax.models import RUN_TIME_FIELDS, AnyModel, RMTConfig, abstract_model, build_model, task_of
from rmt_jax.models.arrays import flat_paths, model_arrays, nest

# Which weights of a training run: what `--weights` takes, and what a file of one bare state dict leaves open.
UNSTATED = "unstated"
KINDS = {"ema": "the moving average (EMA)", "raw": "the raw weights", UNSTATED: "weights that may be raw or EMA"}

# What a backbone's arrays mean depends on these and is not seen in their shapes alone.
BACKBONE_FIELDS = (
    "embed_dims", "depths", "num_heads", "mlp_ratios", "decay_spans", "decay_start", "decomposed"
)  # fmt: skip


_CLASS_LAYERS = re.compile(
    r"((aux_)?head|(decode|auxiliary)_head/conv_seg|bbox_head/retina_cls|"
    r"roi_head/(bbox_head/(\d/)?fc_(cls|reg)|mask_head/(\d/)?conv_logits))/"
)


@dataclasses.dataclass(frozen=True)
class Weights:
    """Weights of one model.

    Attributes:
        name: of the model, one of `list_models()`.
        task: "classification", "backbone", "segmentation" or "detection".
        config: architecture.
        arrays: float32, {our path: array}.
        buffers: upstream's entries that carry no weights, by upstream's keys and verbatim; those that the source lacks
            are computed when they are needed.
        provenance: where the weights come from, ready for JSON.
        source_keys: {our path: the name in the source}, for reports.
        left_out: entries of the source that were not taken, {name: shape}.
        notes: what the user should know.
        class_names: by label, None where they are not known.
        preprocessing: of the pictures, None where it is not known.
        head: of a segmentor or detector, see `create_model`; None of others.

    Raises:
        ValueError: class names that are not as many as the classes.
    """

    name: str
    task: str
    config: RMTConfig
    arrays: Mapping[str, np.ndarray]
    buffers: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    source_keys: Mapping[str, str] = dataclasses.field(default_factory=dict)
    left_out: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    class_names: tuple[str, ...] | None = None
    preprocessing: Preprocessing | DensePreprocessing | None = None
    head: str | None = None

    def __post_init__(self) -> None:
        if self.class_names is not None and len(self.class_names) != self.config.num_classes:
            raise ValueError(
                f"{len(self.class_names)} class names do not go with a head of {self.config.num_classes} classes."
            )

    @property
    def cropping(self) -> Preprocessing:
        """How pictures are brought to one square size, for a classifier or the backbone alone: as the weights say,
        else as for ImageNet."""
        if isinstance(self.preprocessing, Preprocessing):
            return self.preprocessing
        known = self.preprocessing or IMAGENET
        return dataclasses.replace(IMAGENET, mean=known.mean, std=known.std)

    @property
    def resizing(self) -> DensePreprocessing:
        """How whole pictures are resized, for a segmentor or detector: as the weights say, else as upstream."""
        if isinstance(self.preprocessing, DensePreprocessing):
            return self.preprocessing
        known = self.preprocessing or IMAGENET
        return DensePreprocessing(DENSE_SCALES[self.task], known.mean, known.std)

    def abstract_model(self, dtype: DTypeLike = jnp.float32) -> AnyModel:
        """The model with shapes in the place of arrays."""
        return abstract_model(lambda rngs: build_model(self.config, self.task, self.head, dtype=dtype, rngs=rngs))

    def to_model(self, dtype: DTypeLike = jnp.float32) -> AnyModel:
        """The model with these weights, in evaluation mode.

        Raises:
            ValueError: the arrays are not those of the model.
        """
        model = self.abstract_model(dtype)
        raise_problems(array_problems(self.arrays, model))
        fill(model, self.arrays)
        model.eval()
        return model

    def to_torch(self) -> dict[str, np.ndarray]:
        """Upstream's complete state dict, which it loads with strict=True."""
        computed = upstream_buffers(self.config, self.arrays, self.task)
        return to_torch(nest(self.arrays), self.task) | computed | dict(self.buffers)

    @property
    def kind(self) -> str:
        """Which weights of a training run these are, in words."""
        return KINDS.get(self.provenance.get("weights", UNSTATED), "weights of a kind that this version does not know")

    def describe(self) -> str:
        """Name, task, classes and size of the model."""
        size = sum(array.size for path, array in self.arrays.items() if not path.endswith(("/mean", "/var")))
        if self.task != "backbone":
            head = "" if self.head is None else f", {self.head}"
            return f"{self.name}{head}, {self.config.num_classes} classes, {size:,} parameters"
        norms = "with" if self.config.extra_norms else "without"
        return f"{self.name}, backbone {norms} norms of its maps, {size:,} parameters"

    def card(self) -> dict[str, Any]:
        """Everything but the arrays, ready for JSON."""
        return {
            "rmt_jax": CARD_FORMAT,
            "model": self.name,
            "task": self.task,
            "head": self.head,
            "config": {k: v for k, v in dataclasses.asdict(self.config).items() if k not in RUN_TIME_FIELDS},
            "provenance": dict(self.provenance),
            "class_names": self.class_names,
            "preprocessing": None if self.preprocessing is None else dataclasses.asdict(self.preprocessing),
        }


class Fit(NamedTuple):
    """How weights went into a model: its parameters that stayed as they were, and the weights that were not used."""

    fresh: list[str]
    unused: list[str]

    def __str__(self) -> str:
        """Both by name; of more than eight arrays the modules that they are of, and how many of each."""
        parts = {"fresh": self.fresh, "not used": self.unused}
        return "; ".join(f"{what}: {', '.join(_modules(paths))}" for what, paths in parts.items() if paths)


def load_into(model: AnyModel, weights: Weights, where: str, *, head: bool = True) -> Fit:
    """Fill a model in place with the weights that fit: the whole backbone, and the parts of the head that do.

    Of another task, or another head of a segmentor or detector, only the backbone is taken. The LayerNorms of a
    backbone's maps count as head.

    Args:
        model: keeps what it has where nothing fits.
        weights: of the same architecture.
        where: name of the source, for the error.
        head: False leaves the layers that have one output a class as they are.

    Raises:
        ValueError: the backbones differ (every difference is named).
    """
    differences = [
        f"{field}: {getattr(weights.config, field)} there, {getattr(model.config, field)} here"
        for field in BACKBONE_FIELDS
        if getattr(weights.config, field) != getattr(model.config, field)
    ]
    task = task_of(model)
    given = {_in_whole_model(weights.task, path): array for path, array in weights.arrays.items()}
    wanted = {_in_whole_model(task[0], path): (path, leaf.shape) for path, leaf in flat_paths(model_arrays(model))}
    fits = {path for path, (_, shape) in wanted.items() if path in given and given[path].shape == shape}
    differences += [f"{path} does not fit" for path in wanted if _is_trunk(path) and path not in fits]
    if differences:
        raise ValueError(
            f"{where} is of another model ({weights.name}), whose backbone does not fit:\n  " + "\n  ".join(differences)
        )
    if (weights.task, weights.head) != task:
        fits = {path for path in fits if _is_trunk(path)}
    if not head:
        fits = {path for path in fits if not _CLASS_LAYERS.match(path)}
    fill(model, {wanted[path][0]: given[path] for path in fits})
    return Fit(
        fresh=sorted(own for path, (own, _) in wanted.items() if path not in fits),
        unused=sorted(path for path in given if path not in fits),
    )


def class_differences(there: Sequence[str] | None, here: Sequence[str] | None) -> list[str]:
    """Classes of the same number that have two names, in words; none where one side is unknown or longer."""
    if there is None or here is None or len(there) != len(here):
        return []
    pairs = enumerate(zip(there, here, strict=True))
    return [f"class {label} is {one!r} there, {other!r} here" for label, (one, other) in pairs if one != other]


def _modules(paths: Sequence[str], most: int = 8) -> list[str]:
    """Paths, or where there are too many of them the modules, down to the first that is one of a list."""
    if len(paths) <= most:
        return list(paths)
    counts = collections.Counter(re.split(r"/\d|/[^/]*$", path)[0] for path in paths)
    return [f"{module} ({count})" for module, count in counts.items()]


def name_some(parts: Sequence[str], limit: int = 5) -> str:
    """The first few of a list, and how many there are where that is more."""
    return "; ".join(parts[:limit]) + (f"; ... ({len(parts)} in all)" if len(parts) > limit else "")


def array_problems(arrays: Mapping[str, np.ndarray], model: nnx.Module) -> list[str]:
    """What keeps the arrays, by path, from filling a model completely."""
    wanted = {path: leaf.shape for path, leaf in flat_paths(model_arrays(model))}
    problems = [f"missing: {path}" for path in wanted if path not in arrays]
    for path, array in arrays.items():
        if path not in wanted:
            problems.append(f"unexpected: {path} {array.shape}")
        elif array.shape != wanted[path]:
            problems.append(f"shape: {path} is {array.shape}, this model needs {wanted[path]}")
        else:
            problems += finite_problems(path, array)
    return problems


def upstream_buffers(config: RMTConfig, paths: Iterable[str], task: str, steps: int = 0) -> dict[str, np.ndarray]:
    """Upstream's entries without weights, of a model that has not been there: constants, and counters of BatchNorm."""
    counters = {
        torch_key(path, task).replace("running_mean", "num_batches_tracked"): np.array(steps, np.int64)
        for path in paths
        if path.endswith("/mean")
    }
    return {key: value.astype(np.float32) for key, value in relpos_constants(config, task).items()} | counters


def is_counter(key: str) -> bool:
    """Whether an entry of upstream's counts the batches that a BatchNorm has seen."""
    return COUNTERS.search(key) is not None


def _in_whole_model(task: str, path: str) -> str:
    """A path as whole models have it: a bare backbone's begin with what it consists of."""
    return f"backbone/{path}" if task == "backbone" else path


def _is_trunk(path: str) -> bool:
    return path.startswith("backbone/") and not path.startswith("backbone/extra_norms/")
