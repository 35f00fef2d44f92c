"""The configuration: every key, its default and its type. The defaults are the ImageNet recipe of RMT-S."""

import ast
import contextlib
import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from rmt_jax.data import DataConfig
from rmt_jax.models import Remat, RMTConfig, variant
from rmt_jax.tasks import DetectionConfig, DistillConfig, MixConfig, SegmentationConfig
from rmt_jax.training.optimizer import OptimizerConfig
from rmt_jax.training.schedule import ScheduleConfig
from rmt_jax.training.sharding import MeshConfig


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The model.

    Attributes:
        name: one of `rmt_jax.list_models()`.
        drop_path: rate of the last block; None is the variant's own.
        dtype: type to compute in, "float32" or "bfloat16"; parameters are float32.
        remat: what each block recomputes in the backward pass: "none", "dots" (all but the outputs of linear layers)
            or "full". Less memory, more time, the same numbers; `rmt compile` shows what it buys.
        scan: compile the blocks of a stage as one body: quicker to compile, the same numbers. With remat "dots" or
            "full" it costs nothing, with "none" much memory on TPUs.
        architecture: any field of `RMTConfig` to change, such as {"depths": (1, 1, 1, 1)}.
    """

    name: str = "rmt_s"
    drop_path: float | None = None
    dtype: str = "bfloat16"
    remat: Remat = "none"
    scan: bool = False
    architecture: Mapping[str, Any] = dataclasses.field(default_factory=dict, metadata={"fields_of": RMTConfig})

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"model.dtype must be 'float32' or 'bfloat16', got {self.dtype!r}.")
        self.resolve(num_classes=1)

    def resolve(self, num_classes: int) -> RMTConfig:
        """The architecture with a head for `num_classes`."""
        changes = dict(self.architecture)
        if self.drop_path is not None:
            changes["drop_path"] = self.drop_path
        return variant(self.name, **changes | {"remat": self.remat, "scan": self.scan, "num_classes": num_classes})


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When to save and what to keep. A checkpoint is saved at every evaluation.

    Attributes:
        every_steps: also save every so many steps; None only at evaluations.
        keep_last: number of latest checkpoints kept; the best one is kept besides.
    """

    every_steps: int | None = None
    keep_last: int = 2

    def __post_init__(self) -> None:
        if self.keep_last < 1:
            raise ValueError(f"checkpoint.keep_last must be at least 1, got {self.keep_last}.")


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run.

    Attributes:
        task: what a batch means. Of the keys that only one task reads, segmentation has `segmentation` and
            `data.segmentation`, detection `detection` and `data.detection`; the other tasks' stay at their defaults.
        seed: of weights, data order, augmentation and drop path.
        batch_size: of one optimiser step, over all devices.
        epochs: passes over the training split; the last partial batch of each is dropped.
        steps: optimiser steps of the whole run, in the place of epochs.
        reference_batch_size: the batch at which `optimizer.learning_rate` and `ema_decay` are given. The learning rate
            grows linearly with the batch; the decay is raised to the power batch / reference.
        grad_accum_steps: parts that a batch is computed in, one after the other.
        loss: "cross_entropy" of the softmax, or "bce", the binary cross entropy of every class.
        label_smoothing: share of the target spread over all classes.
        erasing: probability of a training picture to have a box replaced by noise.
        freeze_backbone: train the head alone, a linear probe; everything else stays, BatchNorm statistics too.
        ema_decay: of the moving average of parameters and BatchNorm statistics.
        eval_batch_size: over all devices; None is `batch_size`.
        eval_every_epochs: evaluate, save a checkpoint and redraw the curves so often, and at the end.
        eval_every_steps: the same in steps, in the place of epochs.
        log_every_steps: training metrics are averaged over so many steps and written.
        max_skipped_steps: a step whose loss or gradients are not finite changes nothing; more of them than this in a
            row stop the run.
        watchdog_seconds: say where each process stands when no step is finished for so long.
        init_from: what a new run takes its weights from, or None: a workdir (its latest moving average), or what
            `rmt_jax.load_pretrained` takes. Of another task only the backbone is taken, and a head that does not fit
            stays fresh.
    """

    task: Literal["classification", "segmentation", "detection"] = "classification"
    seed: int = 0
    batch_size: int = 2048
    epochs: int = 300
    steps: int | None = None
    reference_batch_size: int = 512
    grad_accum_steps: int = 1
    loss: Literal["cross_entropy", "bce"] = "cross_entropy"
    label_smoothing: float = 0.1
    erasing: float = 0.0
    freeze_backbone: bool = False
    ema_decay: float = 0.99996
    eval_batch_size: int | None = None
    eval_every_epochs: int = 1
    eval_every_steps: int | None = None
    log_every_steps: int = 50
    max_skipped_steps: int = 10
    watchdog_seconds: float = 600.0
    init_from: str | None = None
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=lambda: DataConfig(name="imagenet2012"))
    mix: MixConfig = dataclasses.field(default_factory=MixConfig)
    distill: DistillConfig = dataclasses.field(default_factory=DistillConfig)
    segmentation: SegmentationConfig = dataclasses.field(default_factory=SegmentationConfig)
    detection: DetectionConfig = dataclasses.field(default_factory=DetectionConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)

    def __post_init__(self) -> None:
        for name in (
            "batch_size",
            "epochs",
            "reference_batch_size",
            "grad_accum_steps",
            "eval_every_epochs",
            "log_every_steps",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        for name in ("steps", "eval_every_steps"):
            if (getattr(self, name) or 1) < 1:
                raise ValueError(f"{name} must be at least 1, or None, got {getattr(self, name)}.")
        if self.max_skipped_steps < 0:
            raise ValueError(f"max_skipped_steps must be 0 or more, got {self.max_skipped_steps}.")
        if self.batch_size % self.grad_accum_steps:
            raise ValueError(
                f"batch_size={self.batch_size} cannot be cut into grad_accum_steps={self.grad_accum_steps} equal parts."
            )
        for name in ("label_smoothing", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}.")
        if self.watchdog_seconds <= 0:
            raise ValueError(f"watchdog_seconds must be above 0, got {self.watchdog_seconds:g}.")
        if not 0 <= self.erasing <= 1:
            raise ValueError(f"erasing must be a probability in [0, 1], got {self.erasing}.")
        self._check_task()
        self._check_groups()

    def _check_task(self) -> None:
        """What only one task reads must not be asked for in another."""
        if self.task == "detection":
            self._check_detection()
        if self.task == "classification":
            return
        asked = {
            "loss": self.loss != "cross_entropy",
            "erasing": self.erasing > 0,
            "mix": self.mix.mixes_pictures or self.mix.mix_token,
            "distill": self.distill.teacher is not None,
        }
        for name in (name for name, is_asked in asked.items() if is_asked):
            raise ValueError(f"{name} is for classification and would not be read by {self.task}: leave it out.")

    def _check_detection(self) -> None:
        """Masks are read where the head learns them, and pictures that are counted together stay together."""
        head, needed = self.detection.head, self.detection.has_masks
        if self.data.detection.masks != needed:
            what = "masks" if needed else "no masks"
            raise ValueError(f"detection.head={head!r} learns {what}: set data.detection.masks={needed}.")
        part = self.batch_size // self.grad_accum_steps
        if self.detection.normalizer == "pair" and part % 2 and part > 1:
            given = f"batch_size={self.batch_size} in grad_accum_steps={self.grad_accum_steps} parts"
            choice = "use an even number in each, or detection.normalizer='picture' or 'batch'"
            raise ValueError(f"{given} cannot be cut into pairs of pictures: {choice}.")

    def _check_groups(self) -> None:
        if not (self.mix.mixes_pictures or self.mix.mix_token):
            return
        parts = self.grad_accum_steps if self.mix.mix_token else 1
        if self.batch_size % (self.mix.group * parts):
            what = f"mix.group={self.mix.group}" + (f" x grad_accum_steps={parts}" if parts > 1 else "")
            raise ValueError(
                f"batch_size={self.batch_size} cannot be cut into groups of {what}: choose a multiple, or a mix.group "
                f"that divides {self.batch_size // parts}."
            )

    def total_steps(self, steps_per_epoch: int) -> int:
        """Optimiser steps of the whole run."""
        return self.epochs * steps_per_epoch if self.steps is None else self.steps

    @property
    def peak_learning_rate(self) -> float:
        """Learning rate at the end of the warm-up, scaled to the batch."""
        return self.optimizer.learning_rate * self.batch_size / self.reference_batch_size

    @property
    def step_ema_decay(self) -> float:
        """Decay of the moving average at each step, scaled to the batch."""
        return self.ema_decay ** (self.batch_size / self.reference_batch_size)


class Word(str):
    """A value as the command line gave it: read as a Python literal where the key's type wants one."""


def parse(values: Mapping[str, Any]) -> Config:
    """A checked configuration from a config file's nested dict; what it leaves out keeps its default.

    Raises:
        ValueError: an unknown key (naming the nearest known one), a value of the wrong type or out of range.
    """
    return _build(Config(), values, "")


def _build(default: Any, values: Mapping[str, Any], prefix: str) -> Any:
    """`default`, a dataclass, with `values` in place of its fields."""
    fields = {field.name: field for field in dataclasses.fields(default)}
    hints = typing.get_type_hints(type(default))
    changes: dict[str, Any] = {}
    for key, value in values.items():
        _check_known(key, fields, prefix)
        group = dataclasses.is_dataclass(hints[key]) or "fields_of" in fields[key].metadata
        if group and not isinstance(value, Mapping):
            raise ValueError(f"{prefix}{key} must be a group of keys, got {value!r}.")
        if "fields_of" in fields[key].metadata:
            changes[key] = _some_fields(fields[key].metadata["fields_of"], value, f"{prefix}{key}.")
        elif group:
            changes[key] = _build(getattr(default, key), value, f"{prefix}{key}.")
        else:
            changes[key] = _convert(hints[key], value, f"{prefix}{key}")
    return dataclasses.replace(default, **changes)


def _some_fields(kind: type, values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Some fields of a dataclass that has no instance yet."""
    hints = typing.get_type_hints(kind)
    for key in values:
        _check_known(key, hints, prefix)
    return {key: _convert(hints[key], value, f"{prefix}{key}") for key, value in values.items()}


def _check_known(key: str, known: Iterable[str], prefix: str) -> None:
    known = list(known)
    if key not in known:
        nearest = difflib.get_close_matches(key, known, n=1)
        hint = f" Did you mean {prefix}{nearest[0]}?" if nearest else ""
        raise ValueError(f"Unknown configuration key {prefix}{key}.{hint} Known: {', '.join(known)}.")


def _convert(hint: Any, value: Any, name: str) -> Any:
    """A value as the field's type wants it: lists become tuples, and integers floats where floats are meant.

    Raises:
        ValueError: it does not fit the type.
    """
    if isinstance(value, Word):
        return _convert_word(hint, value, name)
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        origin, arguments = typing.get_origin(option) or option, typing.get_args(option)
        if origin is typing.Literal:
            if value in arguments:
                return value
            continue
        if origin is tuple and arguments[1:] == (Ellipsis,) and isinstance(value, list | tuple):
            return tuple(_convert(arguments[0], item, name) for item in value)
        if origin is tuple and isinstance(value, list | tuple) and len(value) == len(arguments):
            return tuple(_convert(argument, item, name) for argument, item in zip(arguments, value, strict=True))
        if origin is float and type(value) in (int, float):
            return float(value)
        if origin is not tuple and isinstance(value, origin) and not (origin is int and isinstance(value, bool)):
            return value
    described = hint.__name__ if isinstance(hint, type) else str(hint)
    raise ValueError(f"{name} must be {described}, got {value!r}.")


def _convert_word(hint: Any, word: Word, name: str) -> Any:
    text = str(word)
    with contextlib.suppress(ValueError, SyntaxError):  # not a literal, or not one of this type: then it is text
        return _convert(hint, ast.literal_eval(text), name)
    return _convert(hint, text, name)


def to_dict(config: Config) -> dict[str, Any]:
    """Nested plain dict of everything, as config.json holds it."""
    return dataclasses.asdict(config)
