"""Runs of classification: see `kinds`."""

import contextlib
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rmt_jax.data import EvalLoader, ImageSource, TrainLoader
from rmt_jax.data import open_source as open_images
from rmt_jax.models.flops import count_flops
from rmt_jax.tasks import Classification
from rmt_jax.tasks.accuracy import TopK
from rmt_jax.training.config import Config
from rmt_jax.training.confusion import Confusion, write_confusion
from rmt_jax.training.figures import plot_predictions

BEST, BEST_NAME = "top1", "top-1"
SHOWN: tuple[str, ...] = ("top1", "top5", "loss")
NUM_CLASSES = 1000

LABEL_MAP = (5, 18, 18)  # of a picture with token labels
PICTURED = 2000  # evaluation pictures among which predictions.png looks for mistakes


def make_task(config: Config, num_classes: int) -> Classification:
    """A teacher is added by who has loaded one."""
    return Classification(
        model=config.model.resolve(num_classes),
        dtype=config.model.dtype,
        mean=config.data.mean,
        std=config.data.std,
        label_smoothing=config.label_smoothing,
        loss_kind=config.loss,
        erasing=config.erasing,
        mix=config.mix,
        upstream_crops=config.data.token_labels.upstream_crops,
    )


def open_source(config: Config, split: str) -> ImageSource:
    """Pictures with a class."""
    return open_images(config.data, split)


def train_loader(source: ImageSource, config: Config, **processes: int) -> TrainLoader:
    """Random crops of one size."""
    return TrainLoader(source, config.data, batch_size=config.batch_size, seed=config.seed, **processes)


def eval_loader(source: ImageSource, config: Config, batch_size: int, **processes: int) -> EvalLoader:
    """Centre crops of one size."""
    return EvalLoader(source, config.data, batch_size=batch_size, **processes)


def metric(task: Classification, source: ImageSource) -> TopK:
    """Of the task: all it needs is in the batches."""
    del source
    return task.metric()


def training_shapes(config: Config) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Of a picture, its label, and its label map where the recipe has them."""
    size = config.data.image_size
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {"image": ((size, size, 3), jnp.uint8), "label": ((), jnp.int32)}
    if config.data.token_labels.file is not None:
        shapes |= {"label_scores": (LABEL_MAP, np.float16), "label_ids": (LABEL_MAP, np.int16)}
        shapes |= {"crop_box": ((4,), np.float32)}
    return shapes


def device_batch(task: Classification, local: Mapping[str, Any]) -> Mapping[str, np.ndarray]:
    """All of it: labels come back with the logits, of all processes."""
    del task
    return local


def add(metric: TopK, outputs: Mapping[str, np.ndarray], local: Mapping[str, Any], first: int) -> None:
    """Every process takes in the whole batch."""
    del local, first
    metric.add(outputs)


def gather(metric: TopK) -> None:
    """Nothing: all have the same."""
    del metric


def describe_work(config: Config, task: Classification, loader: EvalLoader) -> dict[str, str]:
    """Operations of a picture."""
    del loader
    size = config.data.image_size
    flops = count_flops(task.model, size, size) / 1e9
    return {"FLOPs": f"{flops:.3f} G multiply-accumulates a picture of {size}x{size}"}


def describe_augmentation(config: Config) -> str:
    """What happens to training pictures, on the host and on the device."""
    data, augment, mix = config.data, config.data.augment, config.mix
    policy = augment.rand_augment
    parts = {
        f"crops of {_range(augment.crop_scale)} of the area": augment.crop_scale,
        f"flip {augment.flip:g}": augment.flip,
        f"RandAugment {policy.num_ops} x {policy.magnitude:g}": policy.num_ops,
        "ThreeAugment": augment.three_augment,
        f"colour jitter {augment.color_jitter:g}": augment.color_jitter,
        "turns, shifts, sizes": augment.rotate or augment.translate or augment.scale != (1.0, 1.0),
        f"{data.repeats} repeats over {data.repeat_replicas} replicas": data.repeats > 1,
        f"erasing {config.erasing:g}": config.erasing,
        f"mixup {mix.mixup:g}": mix.mixup,
        f"CutMix {mix.cutmix:g}": mix.cutmix,
        "mix-token": mix.mix_token,
        f"in groups of {mix.group}": mix.mixes_pictures or mix.mix_token,
    }
    return ", ".join(text for text, present in parts.items() if present) or "none"


def describe_loss(config: Config) -> str:
    """What is minimised."""
    distill = config.distill
    parts = {
        {"cross_entropy": "cross entropy", "bce": "binary cross entropy"}[config.loss]: True,
        f"labels smoothed by {config.label_smoothing:g}": config.label_smoothing,
        f"token labels of {config.data.token_labels.file}": config.data.token_labels.file,
        f"{distill.kind} distillation from {distill.teacher}, weight {distill.weight:g}": distill.teacher,
    }
    return ", ".join(text for text, present in parts.items() if present)


def describe_values(values: Mapping[str, float]) -> str:
    """For a line of a log."""
    return f"top-1 {values['top1']:.2f} %, loss {values['loss']:.4f}"


def lowest_classes(metric: TopK, class_names: Sequence[str], limit: int = 5) -> dict[str, str]:
    """The classes with the lowest accuracy, in words: {name: "75.00 % of 36 pictures, 6 taken for 'eight'"}."""
    accuracy, words = metric.class_accuracy, {}
    ascending = np.argsort(accuracy, kind="stable")  # NaN, of classes without pictures, comes last
    for label in ascending[:limit]:
        count = int(metric.class_counts[label])
        if not count:
            break
        wrong = metric.confusion[label].copy()
        wrong[label] = 0
        other = int(wrong.argmax())
        mistaken = f", {wrong[other]:,} taken for {class_names[other]!r}" if wrong[other] else ""
        words[class_names[label]] = f"{accuracy[label]:.2f} % of {count:,} picture{'s' * (count > 1)}{mistaken}"
    return words


def write_evaluation(
    workdir: pathlib.Path, metric: TopK, raw: TopK | None, source: str, class_names: Sequence[str]
) -> dict[str, Any]:
    """confusion.npz and confusion.png."""
    title = f"{source}: top-1 {metric.compute()['top1']:.2f} % of {metric.count:,} pictures"
    write_confusion(workdir, Confusion(metric.confusion, tuple(class_names), "pictures", title))
    return {
        "pictures": metric.count,
        **_figures(metric),
        "raw": None if raw is None else _figures(raw),
        "classes": {
            name: {"accuracy": number(accuracy), "count": int(count)}
            for name, accuracy, count in zip(class_names, metric.class_accuracy, metric.class_counts, strict=True)
        },
    }


def draw_predictions(
    config: Config,
    loader: EvalLoader,
    predict: Callable[[Mapping[str, Any]], Mapping[str, np.ndarray]],
    workdir: pathlib.Path,
) -> None:
    """Draw predictions.png, the mistakes first; looks through this process's first pictures."""
    del config
    images: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    probabilities: list[np.ndarray] = []
    with contextlib.closing(iter(loader)) as batches:
        for local in batches:
            mask, first = local["mask"], jax.process_index() * len(local["mask"])
            logits = predict(local)["logits"][first : first + len(mask)]
            images.append(local["image"][mask])
            labels.append(local["label"][mask])
            probabilities.append(np.asarray(jax.nn.softmax(logits[mask], axis=-1)))
            if len(images) * loader.batch_size >= PICTURED:
                break
    if jax.process_index() == 0:
        plot_predictions(
            np.concatenate(images),
            np.concatenate(labels),
            np.concatenate(probabilities),
            loader.source.class_names,
            workdir / "predictions.png",
        )


def number(value: float) -> float | None:
    """JSON has no NaN nor infinity."""
    return float(value) if math.isfinite(value) else None


def _figures(metric: TopK) -> dict[str, float | None]:
    values = metric.compute()
    names = {"top1": "top1", "top5": "top5", "loss": "loss", "mean_per_class": "mean_per_class_accuracy"}
    return {name: number(values[key]) for key, name in names.items()}


def _range(pair: tuple[float, float] | None) -> str:
    return "" if pair is None else f"{pair[0]:g}..{pair[1]:g}"
