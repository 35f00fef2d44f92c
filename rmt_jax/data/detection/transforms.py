"""Changes of a picture and of what is in it, in the arithmetic of mmdet 2.11, which is OpenCV's and float32."""

import dataclasses

import numpy as np

from rmt_jax.data.detection.changes import Change
from rmt_jax.data.detection.masks import pack
from rmt_jax.data.detection_config import SIZE_DIVISOR
from rmt_jax.data.resize import resize_image, resize_labels

Size = tuple[int, int]  # height and width


@dataclasses.dataclass(frozen=True)
class Instances:
    """The objects of a picture; one row an object.

    Attributes:
        boxes: float32 [objects 4], x1, y1, x2, y2 in pixels.
        labels: int32 [objects].
        masks: uint8 [objects height width] of 0 and 1, or None where they are not wanted.
    """

    boxes: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | None


def scale_factor(old: Size, new: Size) -> np.ndarray:
    """How much wider, higher, wider and higher a picture has become, float32 [4]."""
    return np.array([new[1] / old[1], new[0] / old[0]] * 2, np.float32)


def resize(image: np.ndarray, instances: Instances, size: Size) -> tuple[np.ndarray, Instances]:
    """Picture, boxes and masks of another size; boxes end at its edges."""
    boxes = _clip(instances.boxes * scale_factor(image.shape[:2], size), size)
    masks = instances.masks
    if masks is not None:
        masks = (
            np.stack([resize_labels(mask, size) for mask in masks]) if len(masks) else np.zeros((0, *size), np.uint8)
        )
    return resize_image(image, size), Instances(boxes, instances.labels, masks)


def flip(image: np.ndarray, instances: Instances) -> tuple[np.ndarray, Instances]:
    """Left and right change places."""
    boxes = instances.boxes.copy()
    boxes[:, [0, 2]] = np.float32(image.shape[1]) - instances.boxes[:, [2, 0]]
    masks = None if instances.masks is None else instances.masks[:, :, ::-1]
    return image[:, ::-1], Instances(boxes, instances.labels, masks)


def crop(image: np.ndarray, instances: Instances, corner: Size, sides: Size) -> tuple[np.ndarray, Instances]:
    """A part of a picture, and of its objects those whose boxes reach into it.

    What is left of a box is not fitted to what is left of its mask. Source: mmdet `RandomCrop`.
    """
    (top, left), (height, width) = corner, sides
    rows, columns = slice(top, top + height), slice(left, left + width)
    image = image[rows, columns]
    boxes = _clip(instances.boxes - np.array([left, top, left, top], np.float32), image.shape[:2])
    kept = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    masks = None if instances.masks is None else instances.masks[kept][:, rows, columns]
    return image, Instances(boxes[kept], instances.labels[kept], masks)


def change(image: np.ndarray, instances: Instances, drawn: Change, *, flip_first: bool) -> tuple[np.ndarray, Instances]:
    """A training picture as it was drawn: uint8 RGB [height width 3], and its objects."""
    if drawn.flip and flip_first:
        image, instances = flip(image, instances)
    if drawn.crop is not None:
        image, instances = resize(np.ascontiguousarray(image), instances, drawn.crop.resized)
        image, instances = crop(image, instances, drawn.crop.corner, drawn.crop.sides)
    image, instances = resize(np.ascontiguousarray(image), instances, drawn.size)
    if drawn.flip and not flip_first:
        image, instances = flip(image, instances)
    return image, instances


def padded_size(size: Size) -> Size:
    """The smallest multiples of 32 that hold a picture."""
    height, width = (-(-side // SIZE_DIVISOR) * SIZE_DIVISOR for side in size)
    return height, width


def canvas_size(size: Size, sides: Size) -> Size:
    """Height and width of the canvas for a picture: wide for those that are wider than high, and else high.

    sides: the longest and the shortest.
    """
    return (sides[1], sides[0]) if size[1] > size[0] else sides


def place_image(image: np.ndarray, canvas: Size) -> dict[str, np.ndarray]:
    """A picture in the top left corner of a canvas, black elsewhere.

    Returns:
        {"image": uint8 [height width 3], "image_size": int32 [2], height and width of the picture, "pad_size": int32
        [2], the multiples of 32 that upstream would pad it to}. Upstream's padding is 0 after normalisation: the task,
        which normalises, can make it so.
    """
    height, width = image.shape[:2]
    whole = np.zeros((*canvas, 3), np.uint8)
    whole[:height, :width] = image
    return {
        "image": whole,
        "image_size": np.array([height, width], np.int32),
        "pad_size": np.array(padded_size((height, width)), np.int32),
    }


def place_instances(instances: Instances, canvas: Size, max_boxes: int) -> dict[str, np.ndarray]:
    """Objects in the first of `max_boxes` rows, which they must not exceed.

    Returns:
        {"boxes": float32 [max_boxes 4], "labels": int32 [max_boxes], "valid": bool [max_boxes], whether there is an
        object in the row} and, with masks, {"masks": uint8 [max_boxes height width/8] on the canvas, packed as by
        `masks.pack`}.
    """
    count = len(instances.boxes)
    boxes, labels = np.zeros((max_boxes, 4), np.float32), np.zeros(max_boxes, np.int32)
    boxes[:count], labels[:count] = instances.boxes, instances.labels
    placed = {"boxes": boxes, "labels": labels, "valid": np.arange(max_boxes) < count}
    if instances.masks is None:
        return placed
    packed = pack(instances.masks)
    masks = np.zeros((max_boxes, canvas[0], canvas[1] // 8), np.uint8)
    masks[:count, : packed.shape[1], : packed.shape[2]] = packed
    return {**placed, "masks": masks}


def _clip(boxes: np.ndarray, size: Size) -> np.ndarray:
    """Boxes that end at the edges of a picture."""
    return np.clip(boxes, 0, np.array([size[1], size[0]] * 2, np.float32))
