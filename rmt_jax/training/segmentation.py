"""Runs of semantic segmentation: see `kinds`."""

import contextlib
import io
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from PIL import Image

from rmt_jax.data.segmentation import (
    SegmentationEvalLoader,
    SegmentationSource,
    SegmentationTrainLoader,
    open_segmentation_source,
    palette,
)
from rmt_jax.models.flops import count_segmentor_flops
from rmt_jax.tasks import MeanIoU, Segmentation
from rmt_jax.training.classification import number
from rmt_jax.training.config import Config
from rmt_jax.training.confusion import Confusion, write_confusion
from rmt_jax.training.figures import plot_label_maps
from rmt_jax.training.metrics import replace_file

BEST, BEST_NAME = "mIoU", "IoU"
SHOWN: tuple[str, ...] = ("mIoU", "aAcc", "mAcc")
NUM_CLASSES = 150

OVERLAYS = "overlays"
_SHEET = 6  # pictures in predictions.png
_OPACITY = 0.5


def make_task(config: Config, num_classes: int) -> Segmentation:
    """The task of a configuration."""
    return Segmentation(
        model=config.model.resolve(num_classes),
        dtype=config.model.dtype,
        mean=config.data.mean,
        std=config.data.std,
        config=config.segmentation,
    )


def open_source(config: Config, split: str) -> SegmentationSource:
    """Pictures with label maps."""
    return open_segmentation_source(config.data, split)


def train_loader(source: SegmentationSource, config: Config, **processes: int) -> SegmentationTrainLoader:
    """Random crops of one size."""
    return SegmentationTrainLoader(source, config.data, batch_size=config.batch_size, seed=config.seed, **processes)


def eval_loader(
    source: SegmentationSource, config: Config, batch_size: int, **processes: int
) -> SegmentationEvalLoader:
    """Whole pictures, those of one shape together."""
    return SegmentationEvalLoader(source, config.data, batch_size=batch_size, **processes)


def metric(task: Segmentation, source: SegmentationSource) -> MeanIoU:
    """Of the task: all it needs is in the batches."""
    del source
    return task.metric()


def training_shapes(config: Config) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Of a crop, its labels, and the size of what is no padding."""
    size = config.data.segmentation.crop_size
    return {"image": ((*size, 3), jnp.uint8), "label": (size, jnp.uint8), "picture_size": ((2,), jnp.int32)}


def device_batch(task: Segmentation, local: Mapping[str, Any]) -> Mapping[str, np.ndarray]:
    """The pictures, and the positions of their pixels; labels stay here."""
    return task.device_batch(local)


def add(metric: MeanIoU, outputs: Mapping[str, np.ndarray], local: Mapping[str, Any], first: int) -> None:
    """Every process takes in its own pictures."""
    for index in np.flatnonzero(local["mask"]):
        label = local["label"][index]
        height, width = label.shape
        metric.add({"classes": outputs["classes"][first + index, :height, :width], "label": label})


def gather(metric: MeanIoU) -> None:
    """Add up the pixels of all processes."""
    if jax.process_count() > 1:
        # As pairs of 32 bits: a data set may have more pixels than they can count, and jax has no 64 bits.
        halves = np.stack([metric.confusion >> 31, metric.confusion & (2**31 - 1)]).astype(np.int32)
        high, low = np.asarray(multihost_utils.process_allgather(halves)).astype(np.int64).sum(axis=0)
        metric.confusion = (high << 31) + low
        metric.count = int(np.asarray(multihost_utils.process_allgather(np.int32(metric.count))).sum())


def describe_work(config: Config, task: Segmentation, loader: SegmentationEvalLoader) -> dict[str, str]:
    """Operations of the largest picture, and how predictions are made."""
    height, width = next(iter(loader.shapes))[0]
    flops = count_segmentor_flops(task.model, config.segmentation.head, height, width) / 1e9
    made, ratios = config.segmentation, config.data.segmentation.eval_ratios
    parts = {
        "whole pictures": made.mode == "whole",
        f"windows of {made.window[0]}x{made.window[1]} every {made.stride[0]}x{made.stride[1]}": made.mode == "slide",
        "mirrored too": made.flip,
        f"at {', '.join(f'{ratio:g}' for ratio in ratios)} times the size": ratios != (1.0,),
    }
    return {
        "FLOPs": f"{flops:.1f} G multiply-accumulates a picture of {width}x{height}",
        "prediction": ", ".join(text for text, present in parts.items() if present),
        "evaluation shapes": f"{len(loader.shapes):,}, a program for each, the largest {width}x{height}",
    }


def describe_augmentation(config: Config) -> str:
    """What happens to training pictures."""
    data = config.data.segmentation
    (longest, shortest), (low, high), (height, width) = data.scale, data.ratio_range, data.crop_size
    parts = {
        f"resized to {longest}x{shortest} times {low:g}..{high:g}": True,
        f"crops of {width}x{height}": True,
        f"no class over {data.cat_max_ratio:g}": data.cat_max_ratio < 1,
        f"flip {data.flip:g}": data.flip,
        "photometric": data.photometric,
    }
    return ", ".join(text for text, present in parts.items() if present)


def describe_loss(config: Config) -> str:
    """What is minimised."""
    over = "all pixels" if config.segmentation.count_ignored else "labelled pixels"
    aux = f", auxiliary head {config.segmentation.aux_weight:g}" if config.segmentation.head == "upernet" else ""
    return f"cross entropy over {over}{aux}"


def describe_values(values: Mapping[str, float]) -> str:
    """For a line of a log."""
    return f"mIoU {values['mIoU']:.2f} %, pixels {values['aAcc']:.2f} %"


def lowest_classes(metric: MeanIoU, class_names: Sequence[str], limit: int = 5) -> dict[str, str]:
    """The classes with the lowest IoU, in words: {name: "IoU 12.00 %, 15.00 % of 1,200 pixels, ..."}."""
    words = {}
    for label in np.argsort(metric.class_iou, kind="stable")[:limit]:
        pixels = int(metric.class_pixels[label])
        if np.isnan(metric.class_iou[label]):
            break
        wrong = metric.confusion[label].copy()
        wrong[label] = 0
        mistaken = f", most others taken for {class_names[int(wrong.argmax())]!r}" if wrong.any() else ""
        of_pixels = f", {metric.class_accuracy[label]:.2f} % of {pixels:,} pixels" if pixels else ", no pixels"
        words[class_names[label]] = f"IoU {metric.class_iou[label]:.2f} %{of_pixels}{mistaken}"
    return words


def write_evaluation(
    workdir: pathlib.Path, metric: MeanIoU, raw: MeanIoU | None, source: str, class_names: Sequence[str]
) -> dict[str, Any]:
    """confusion.npz and confusion.png, of pixels; other pictures are drawn where predictions are at hand."""
    title = f"{source}: {describe_values(metric.compute())} of {metric.count:,} pictures"
    write_confusion(workdir, Confusion(metric.confusion, tuple(class_names), "pixels", title))
    columns = zip(class_names, metric.class_iou, metric.class_accuracy, metric.class_pixels, strict=True)
    return {
        "pictures": metric.count,
        **metric.compute(),
        "raw": None if raw is None else raw.compute(),
        "classes": {
            name: {"iou": number(iou), "accuracy": number(accuracy), "pixels": int(pixels)}
            for name, iou, accuracy, pixels in columns
        },
    }


def draw_predictions(
    config: Config,
    loader: SegmentationEvalLoader,
    predict: Callable[[Mapping[str, Any]], Mapping[str, np.ndarray]],
    workdir: pathlib.Path,
) -> None:
    """Save overlays/ID.png of some pictures, and predictions.png with pictures, truth and prediction side by side."""
    wanted = max(config.segmentation.overlays, _SHEET)
    shown: list[tuple[str, np.ndarray, np.ndarray, np.ndarray]] = []
    with contextlib.closing(iter(loader)) as batches:
        for local in batches:
            first, outputs = jax.process_index() * len(local["mask"]), predict(local)
            for index in np.flatnonzero(local["mask"]):
                label, name = local["label"][index], loader.source.id(int(local["index"][index]))
                height, width = label.shape
                image = Image.fromarray(local["image"][index]).resize((width, height), Image.Resampling.BILINEAR)
                shown.append((name, np.asarray(image), label, outputs["classes"][first + index, :height, :width]))
            if len(shown) >= wanted:
                break
    if jax.process_index():
        return
    colours = palette(loader.source.num_classes)
    folder = workdir / OVERLAYS
    folder.mkdir(exist_ok=True)
    for name, picture, _, classes in shown[: config.segmentation.overlays]:
        path = folder / f"{pathlib.PurePath(name).with_suffix('').as_posix().replace('/', '_')}.png"
        replace_file(path, png(overlay(picture, classes, colours)))
    sheet = [row[1:] for row in shown[:_SHEET]]
    plot_label_maps(sheet, colours, loader.source.class_names, workdir / "predictions.png")


def overlay(image: np.ndarray, classes: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """A picture with every pixel half in the colour of its class, uint8 [height width 3]."""
    return np.rint((1 - _OPACITY) * image + _OPACITY * colours[classes]).astype(np.uint8)


def png(image: np.ndarray, colours: np.ndarray | None = None) -> bytes:
    """A picture as a PNG; with colours an indexed one, whose values are the classes."""
    buffer, picture = io.BytesIO(), Image.fromarray(image)
    if colours is not None:
        picture.putpalette(colours.tobytes())
    picture.save(buffer, format="PNG")
    return buffer.getvalue()
