"""What detectors find in pictures, from their outputs to boxes in the original coordinates and 28x28 masks."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from rmt_jax.models import DenseOutputs, MaskRCNN
from rmt_jax.ops import Detections, Proposals, rcnn_detections, retinanet_detections
from rmt_jax.tasks.detection_dense import AnchorGrid
from rmt_jax.tasks.detection_regions import BOX_SIDE, MASK_SIDE, STAGES, Pyramid, of_class, refined

Sizes = Int[Array, "batch 2"]
Scales = Float[Array, "batch 2"]


def retinanet_found(
    dense: DenseOutputs, grid: AnchorGrid, image_size: Sizes, extent: Sizes, scale: Scales
) -> Detections:
    """Of each picture of a batch; see `retinanet_detections`. extent: where anchors are looked at."""
    boxes = grid.boxes()

    def of_picture(dense: DenseOutputs, size: Array, extent: Array, scale: Array) -> Detections:
        return retinanet_detections(dense.logits, dense.deltas, boxes, grid.within(extent), size, scale)

    return jax.vmap(of_picture)(dense, image_size, extent, scale)


def rcnn_found(
    model: MaskRCNN, pyramid: Pyramid, proposals: Proposals, image_size: Sizes, scale: Scales
) -> tuple[Detections, Float[Array, "batch slots 28 28"]]:
    """(what is found in each picture, the masks in the boxes as probabilities).

    In a cascade boxes go where each stage's likeliest class says, the logits of all stages are averaged, and the masks
    of their heads. Source: mmdet `StandardRoIHead` and `CascadeRoIHead`, `simple_test`.
    """
    stages, boxes = STAGES[model.HEAD], proposals.boxes
    logits: Any = 0.0
    for index, stage in enumerate(stages):
        of_classes, deltas = (
            x.reshape(*boxes.shape[:2], *x.shape[1:])
            for x in model.boxes(pyramid.regions(boxes, BOX_SIDE), stage=index)
        )
        logits += of_classes / len(stages)
        if index + 1 < len(stages):
            best = of_classes[..., :-1].argmax(axis=-1)
            boxes = refined(stage, boxes, of_class(deltas, best, axis=2), image_size)

    def of_picture(*arrays: Array) -> Detections:
        return rcnn_detections(*arrays, stds=stages[-1].stds)

    found = jax.vmap(of_picture)(boxes, proposals.valid, logits, deltas, image_size, scale)
    return found, _masks(model, pyramid, found, scale)


def _masks(
    model: MaskRCNN, pyramid: Pyramid, found: Detections, scale: Scales
) -> Float[Array, "batch slots rows columns"]:
    """Of the classes that were found, in the boxes that were found."""
    on_canvas = found.boxes * scale[:, [1, 0, 1, 0]][:, None]
    regions, total = pyramid.regions(on_canvas, MASK_SIDE), jnp.zeros(())
    for index in range(model.STAGES):
        masks = jax.nn.sigmoid(model.masks(regions, stage=index))
        total += masks.reshape(*found.labels.shape, *masks.shape[1:]) / model.STAGES
    return of_class(total, found.labels, axis=4)
