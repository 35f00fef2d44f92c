"""Runs of object detection: see `kinds`."""

import contextlib
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from PIL import Image

from rmt_jax.data.detection import DetectionEvalLoader, DetectionSource, DetectionTrainLoader, open_detection_source
from rmt_jax.models.flops import count_detector_flops
from rmt_jax.tasks import AveragePrecision, Detection, paste_mask
from rmt_jax.training.classification import number
from rmt_jax.training.config import Config
from rmt_jax.training.metrics import replace_file
from rmt_jax.training.object_figures import Found, draw_objects, plot_objects
from rmt_jax.training.segmentation import png

BEST, BEST_NAME = "box_AP", "AP"
SHOWN: tuple[str, ...] = ("box_AP", "box_AP50", "box_AP75", "mask_AP", "mask_AP50")
NUM_CLASSES = 80

OVERLAYS = "overlays"
SHOWN_SCORE = 0.3  # of objects in pictures
_SHEET = 6  # pictures in predictions.png


def make_task(config: Config, num_classes: int) -> Detection:
    """The task of a configuration."""
    return Detection(
        model=config.model.resolve(num_classes),
        dtype=config.model.dtype,
        mean=config.data.mean,
        std=config.data.std,
        config=config.detection,
        fills_canvas=not config.data.detection.eval_canvases,
    )


def open_source(config: Config, split: str) -> DetectionSource:
    """Pictures with boxes."""
    return open_detection_source(config.data, split)


def train_loader(source: DetectionSource, config: Config, **processes: int) -> DetectionTrainLoader:
    """Pictures of random sizes on canvases."""
    return DetectionTrainLoader(source, config.data, batch_size=config.batch_size, seed=config.seed, **processes)


def eval_loader(source: DetectionSource, config: Config, batch_size: int, **processes: int) -> DetectionEvalLoader:
    """Whole pictures, those of one shape together."""
    return DetectionEvalLoader(source, config.data, batch_size=batch_size, **processes)


def metric(task: Detection, source: DetectionSource) -> AveragePrecision:
    """With all that is annotated."""
    return AveragePrecision(source.annotations.data_set(), masks=task.config.has_masks)


def training_shapes(config: Config) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Of a picture on the wide canvas, and its objects."""
    data = config.data.detection
    width, height = data.canvas
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        "image": ((height, width, 3), jnp.uint8),
        "image_size": ((2,), jnp.int32),
        "pad_size": ((2,), jnp.int32),
        "boxes": ((data.max_boxes, 4), jnp.float32),
        "labels": ((data.max_boxes,), jnp.int32),
        "valid": ((data.max_boxes,), jnp.bool_),
    }
    return shapes | ({"masks": ((data.max_boxes, height, width // 8), jnp.uint8)} if data.masks else {})


def device_batch(task: Detection, local: Mapping[str, Any]) -> Mapping[str, np.ndarray]:
    """The pictures and their sizes."""
    return task.device_batch(local)


def add(metric: AveragePrecision, outputs: Mapping[str, np.ndarray], local: Mapping[str, Any], first: int) -> None:
    """Every process takes in its own pictures, with masks of their size."""
    for row in np.flatnonzero(local["mask"]):
        height, width = local["original_size"][row].tolist()
        found = found_in(outputs, first + int(row), (height, width))
        metric.add({"index": local["index"][row], **found._asdict()})


def found_in(outputs: Mapping[str, np.ndarray], row: int, size: tuple[int, int]) -> Found:
    """What `Detection.predict` found in the picture of a row, of some (height, width)."""
    kept = outputs["valid"][row]
    boxes, scores, labels = (outputs[name][row][kept] for name in ("boxes", "scores", "labels"))
    if "masks" not in outputs:
        return Found(boxes, scores, labels, None)
    masks = [paste_mask(mask, box, size) for mask, box in zip(outputs["masks"][row][kept], boxes, strict=True)]
    return Found(boxes, scores, labels, np.stack(masks) if masks else np.zeros((0, *size), bool))


def gather(metric: AveragePrecision) -> None:
    """Take in what all processes have found."""
    if jax.process_count() == 1:
        return
    own = np.frombuffer(metric.dump(), np.uint8)
    lengths = np.asarray(multihost_utils.process_allgather(np.int32(len(own))))
    padded = np.pad(own, (0, int(lengths.max()) - len(own)))
    for dumped, length in zip(np.asarray(multihost_utils.process_allgather(padded)), lengths, strict=True):
        metric.load(dumped[:length].tobytes())


def describe_work(config: Config, task: Detection, loader: DetectionEvalLoader) -> dict[str, str]:
    """Operations of the largest picture, and what evaluation compiles."""
    height, width = next(iter(loader.shapes))
    flops = count_detector_flops(task.model, config.detection.head, height, width) / 1e9
    return {
        "FLOPs": f"{flops:.1f} G multiply-accumulates a picture of {width}x{height}",
        "evaluation shapes": f"{len(loader.shapes):,}, a program for each, the largest {width}x{height}",
    }


def describe_augmentation(config: Config) -> str:
    """What happens to training pictures."""
    data = config.data.detection
    scales = ", ".join(f"{longest}x{shortest}" for longest, shortest in data.scales[:1] + data.scales[1:][-1:])
    (least, most), (width, height) = data.crop_sides, data.canvas
    parts = {
        f"resized to {scales}"
        if len(data.scales) < 3
        else f"resized to one of {len(data.scales)} sizes {scales}": True,
        f"a half to crops of {least}..{most}": data.crop_scales,
        f"flip {data.flip:g}": data.flip,
        f"canvas {width}x{height}" + ("" if width == height else " or upright"): True,
    }
    return ", ".join(text for text, present in parts.items() if present)


def describe_loss(config: Config) -> str:
    """What is minimised."""
    detection = config.detection
    of_head = {
        "retinanet": "focal loss and L1",
        "mask_rcnn": "cross entropy and L1 of proposals and regions, cross entropy of masks",
        "cascade_mask_rcnn": "proposals, three stages of regions by cross entropy and GIoU, cross entropy of masks",
    }[detection.head]
    samples = f", {detection.sampling_ratio} samples a bin of RoIAlign" if detection.sampling_ratio else ""
    if detection.has_masks and detection.proposals:
        samples += f", {detection.proposals} proposals and {detection.samples} samples of them"
    return f"{of_head}; over the boxes of a {detection.normalizer}; {detection.canvas} canvas{samples}"


def describe_values(values: Mapping[str, float]) -> str:
    """For a line of a log."""
    masks = f", mask AP {values['mask_AP']:.2f} %" if "mask_AP" in values else ""
    return f"box AP {values['box_AP']:.2f} %{masks}"


def lowest_classes(metric: AveragePrecision, class_names: Sequence[str], limit: int = 5) -> dict[str, str]:
    """The classes with the lowest AP, in words: {name: "AP 12.00 % of 1,200 objects"}."""
    found, counts, words = metric.class_ap("box"), metric.class_counts(), {}
    for label in np.argsort(found, kind="stable")[:limit]:  # NaN, of classes without objects, comes last
        if np.isnan(found[label]):
            break
        words[class_names[label]] = f"AP {found[label]:.2f} % of {int(counts[label]):,} objects"
    return words


def write_evaluation(
    workdir: pathlib.Path,
    metric: AveragePrecision,
    raw: AveragePrecision | None,
    source: str,
    class_names: Sequence[str],
) -> dict[str, Any]:
    """Everything found, as COCO's json of results. No pictures: those are drawn where predictions are at hand."""
    del source
    values = metric.compute()
    kinds: list[Any] = ["box", "mask"] if "mask_AP" in values else ["box"]
    for kind in kinds:
        metric.write_results(workdir / f"{kind}_results.json", kind)
    of_classes = {kind: metric.class_ap(kind) for kind in kinds}
    return {
        "pictures": metric.count,
        **{name: number(value) for name, value in values.items()},
        "raw": None if raw is None else {name: number(value) for name, value in raw.compute().items()},
        "classes": {
            name: {
                **{f"{kind}_AP": number(found[label]) for kind, found in of_classes.items()},
                "objects": int(metric.class_counts()[label]),
            }
            for label, name in enumerate(class_names)
        },
    }


def draw_predictions(
    config: Config,
    loader: DetectionEvalLoader,
    predict: Callable[[Mapping[str, Any]], Mapping[str, np.ndarray]],
    workdir: pathlib.Path,
) -> None:
    """Save overlays/ID.png of some pictures, and predictions.png with what there is and what is found side by side."""
    wanted = max(config.detection.overlays, _SHEET)
    shown: list[tuple[str, np.ndarray, Found, Found]] = []
    with contextlib.closing(iter(loader)) as batches:
        for local in batches:
            first, outputs = jax.process_index() * len(local["mask"]), predict(local)
            for row in np.flatnonzero(local["mask"]):
                height, width = local["original_size"][row].tolist()
                rows, columns = local["image_size"][row]
                image = Image.fromarray(local["image"][row, :rows, :columns]).resize((width, height))
                index = int(local["index"][row])
                objects = loader.source.annotations.objects(index)
                truth = Found(objects.boxes, np.ones(len(objects.boxes)), objects.labels, None)
                found = found_in(outputs, first + int(row), (height, width)).above(SHOWN_SCORE)
                shown.append((loader.source.id(index), np.asarray(image), truth, found))
            if len(shown) >= wanted:
                break
    if jax.process_index():
        return
    names, folder = loader.source.class_names, workdir / OVERLAYS
    folder.mkdir(exist_ok=True)
    for name, picture, _, found in shown[: config.detection.overlays]:
        path = folder / f"{pathlib.PurePath(name).with_suffix('').as_posix().replace('/', '_')}.png"
        replace_file(path, png(draw_objects(picture, found, names)))
    plot_objects([row[1:] for row in shown[:_SHEET]], names, workdir / "predictions.png")
