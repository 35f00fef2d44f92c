"""All annotations of a split in a few arrays, which processes can share, and which of them count."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from rmt_jax.data.interface import Objects, Outline

# Upstream leaves out pictures whose shorter side is smaller.
_SMALLEST_SIDE = 32


class AnnotationError(ValueError):
    """Annotations that do not say what their pictures show; the message names them. One is enough to stop a run."""


@dataclasses.dataclass(frozen=True, eq=False)
class Annotations:
    """The annotations of a split as they are written, in the order of the file; of a picture they are consecutive.

    Attributes:
        class_names: of the categories, by ascending id: labels are positions in it.
        category_ids: likewise.
        image_ids: int64 [pictures].
        file_names: encoded as in file systems [pictures].
        sizes: int32 [pictures 2], height and width.
        first_object: int64 [pictures + 1]; the objects of picture i are first_object[i] .. first_object[i + 1] - 1.
        boxes: float64 [objects 4], x, y, width and height.
        areas: float64 [objects].
        labels: int32 [objects].
        crowd: bool [objects].
        ignored: bool [objects], annotations that are marked with "ignore".
        first_polygon: int64 [objects + 1], where the polygons of each object begin.
        first_number: int64 [polygons + 1], where the numbers of each polygon begin.
        numbers: float64, x, y, x, y, ...
        first_byte: int64 [objects + 1], where the run lengths of each object begin.
        run_lengths: uint8, COCO's compressed ones.
        strangers: annotations in the file that are of none of its pictures, and not here.
    """

    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    image_ids: np.ndarray
    file_names: np.ndarray
    sizes: np.ndarray
    first_object: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    ignored: np.ndarray
    first_polygon: np.ndarray
    first_number: np.ndarray
    numbers: np.ndarray
    first_byte: np.ndarray
    run_lengths: np.ndarray
    strangers: int

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def has_outlines(self) -> np.ndarray:
        """Of which objects there is one, bool [objects]."""
        return (np.diff(self.first_polygon) > 0) | (np.diff(self.first_byte) > 0)

    @property
    def pictures(self) -> np.ndarray:
        """The picture of each object, int64 [objects]."""
        return np.repeat(np.arange(len(self)), np.diff(self.first_object))

    def left_out(self) -> dict[str, np.ndarray]:
        """Why which objects count for nothing, bool [objects] for each reason."""
        return _left_out(self.boxes, self.areas, self.ignored, self.sizes[self.pictures])

    @property
    def single(self) -> np.ndarray:
        """Which objects are trained on, bool [objects]: all that count, without crowds."""
        return ~self.crowd & ~np.any([*self.left_out().values()], axis=0)

    def box_counts(self) -> np.ndarray:
        """How many boxes of each picture are trained on, int64 [pictures]."""
        return np.bincount(self.pictures[self.single], minlength=len(self))

    def objects(self, picture: int) -> Objects:
        """What counts in a picture. Source: mmdet `CocoDataset._parse_ann_info`."""
        rows = slice(int(self.first_object[picture]), int(self.first_object[picture + 1]))
        reasons = _left_out(self.boxes[rows], self.areas[rows], self.ignored[rows], self.sizes[picture])
        kept = rows.start + np.flatnonzero(~np.any([*reasons.values()], axis=0))
        boxes = self.boxes[kept]
        corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
        outlines = tuple(self.outline(row) for row in kept.tolist())
        return Objects(corners.astype(np.float32), self.labels[kept], self.crowd[kept], outlines)

    def outline(self, row: int) -> Outline:
        """Of one object."""
        if self.first_byte[row] < self.first_byte[row + 1]:
            return self.run_lengths[self.first_byte[row] : self.first_byte[row + 1]].tobytes()
        polygons = range(int(self.first_polygon[row]), int(self.first_polygon[row + 1]))
        return tuple(self.numbers[self.first_number[i] : self.first_number[i + 1]] for i in polygons) or None

    def data_set(self) -> dict[str, list[dict[str, Any]]]:
        """COCO's own form, to evaluate with: {"images", "annotations", "categories"}, everything that is annotated.

        Annotations are numbered anew, from 1: to pycocotools an object of id 0 is none.
        """
        categories = zip(self.category_ids, self.class_names, strict=True)
        images = zip(self.image_ids.tolist(), self.file_names.tolist(), self.sizes.tolist(), strict=True)
        return {
            "images": [
                {"id": image_id, "file_name": name.decode(errors="replace"), "height": height, "width": width}
                for image_id, name, (height, width) in images
            ],
            "annotations": list(self._rows()),
            "categories": [{"id": category, "name": name} for category, name in categories],
        }

    def _rows(self) -> Iterator[dict[str, Any]]:
        for row, picture in enumerate(self.pictures.tolist()):
            outline: Any = self.outline(row)
            if isinstance(outline, bytes):
                outline = {"size": self.sizes[picture].tolist(), "counts": outline}
            elif outline is not None:
                outline = [polygon.tolist() for polygon in outline]
            yield {
                "id": row + 1,
                "image_id": int(self.image_ids[picture]),
                "category_id": self.category_ids[self.labels[row]],
                "bbox": self.boxes[row].tolist(),
                "area": float(self.areas[row]),
                "iscrowd": int(self.crowd[row]),
                **({} if outline is None else {"segmentation": outline}),
            }


def _left_out(boxes: np.ndarray, areas: np.ndarray, ignored: np.ndarray, sizes: np.ndarray) -> dict[str, np.ndarray]:
    """Upstream's reasons. sizes: of the picture of each object, or of one for all."""
    inside = np.minimum(boxes[:, :2] + boxes[:, 2:], sizes[..., ::-1]) - np.maximum(boxes[:, :2], 0)
    return {
        "marked to ignore": ignored.astype(bool),
        "beside the picture": np.prod(np.maximum(inside, 0), axis=1) == 0,
        "without area": (areas <= 0) | (boxes[:, 2:] < 1).any(axis=1),
    }


def training_pictures(annotations: Annotations) -> tuple[np.ndarray, Mapping[str, int]]:
    """Positions of the pictures to train on, int64, and how many are left out for which reason.

    As upstream, pictures with any annotation are taken, even if none of them counts.
    Source: mmdet `CocoDataset._filter_imgs`.
    """
    empty = np.diff(annotations.first_object) == 0
    small = ~empty & (annotations.sizes.min(axis=1) < _SMALLEST_SIDE)
    reasons = {"without objects": int(empty.sum()), f"smaller than {_SMALLEST_SIDE} pixels": int(small.sum())}
    return np.flatnonzero(~empty & ~small), {reason: count for reason, count in reasons.items() if count}


def check_trainable(annotations: Annotations, pictures: np.ndarray, name: str, *, max_boxes: int, masks: bool) -> None:
    """Annotations that a run would stop at, or would have to leave out, are refused before it starts.

    Raises:
        AnnotationError: there is nothing to train on, a picture has too many boxes, an object has no mask.
    """
    if not len(pictures):
        raise AnnotationError(f"{name} has no picture with an object to train on")
    counts = annotations.box_counts()[pictures]
    if counts.max() > max_boxes:
        worst = _file_name(annotations, int(pictures[counts.argmax()]))
        raise AnnotationError(
            f"{int((counts > max_boxes).sum()):,} pictures of {name} have more than data.detection.max_boxes="
            f"{max_boxes} boxes, the most, {int(counts.max())}, has {worst}: set data.detection.max_boxes="
            f"{int(counts.max())}"
        )
    missing = np.flatnonzero(annotations.single & ~annotations.has_outlines)
    if masks and len(missing):
        first = _file_name(annotations, int(annotations.pictures[missing[0]]))
        raise AnnotationError(
            f"{len(missing):,} of the {int(annotations.single.sum()):,} objects of {name} have no mask "
            f"(`segmentation`), the first is in {first}: train on boxes alone, with "
            "data.detection.masks=False, or add the masks"
        )


def _file_name(annotations: Annotations, picture: int) -> str:
    return annotations.file_names[picture].decode(errors="replace")
