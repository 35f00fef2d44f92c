"""COCO's json of instances to arrays, with everything refused by name that a wrong file would spoil in silence."""

import json
import math
import os
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import numpy as np
from pycocotools import mask as run_lengths

from rmt_jax.data.detection.annotations import AnnotationError, Annotations
from rmt_jax.data.detection.masks import decompress

_SECTIONS = ("images", "annotations", "categories")


def read_coco(path: str) -> Annotations:
    """The annotations in a json of COCO's instances.

    Raises:
        AnnotationError: it is no such file, or a part of it is missing, repeated or out of range.
    """
    with open(path, "rb") as file:
        try:
            content = json.load(file)
        except ValueError as error:  # of json, or of the encoding
            raise AnnotationError(f"{path} is no json, or is cut off: {error}") from error
    return parse_coco(content, path)


def parse_coco(content: Any, where: str) -> Annotations:
    """The annotations in what a json of COCO's instances holds. where: its name in messages.

    Raises:
        AnnotationError: as `read_coco`.
    """
    if not isinstance(content, dict) or not all(isinstance(content.get(name), list) for name in _SECTIONS):
        found = (
            f"an object with {', '.join(map(repr, content))}" if isinstance(content, dict) else type(content).__name__
        )
        raise AnnotationError(
            f"{where} is no COCO annotation file: expected an object with the lists {', '.join(_SECTIONS)}, found "
            f"{found}"
        )
    categories = [
        (_integer(entry, "id", "category", where), str(entry.get("name", entry["id"])))
        for entry in _entries(content, "categories", where)
    ]
    categories.sort()
    _check_unique("categories", "id", [category for category, _ in categories], where)
    _check_unique("categories", "name", [name for _, name in categories], where)
    images = list(_entries(content, "images", where))
    image_ids = [_integer(entry, "id", "picture", where) for entry in images]
    _check_unique("pictures", "id", image_ids, where)
    names = [_text(entry, "file_name", where) for entry in images]
    _check_unique("pictures", "file_name", names, where)
    sizes = [tuple(_integer(entry, side, "picture", where) for side in ("height", "width")) for entry in images]
    for name, size in zip(names, sizes, strict=True):
        if min(size) < 1:
            raise AnnotationError(f"{where}: the picture {name!r} has height, width {size}: expected 1 or more")
    reader = _Reader(where, {category: label for label, (category, _) in enumerate(categories)}, image_ids, sizes)
    for entry in _entries(content, "annotations", where):
        reader.add(entry)
    return Annotations(
        class_names=tuple(name for _, name in categories),
        category_ids=tuple(category for category, _ in categories),
        image_ids=np.array(image_ids, np.int64),
        file_names=np.array([os.fsencode(name) for name in names], np.bytes_),
        sizes=np.array(sizes, np.int32).reshape(-1, 2),
        **reader.arrays(),
    )


class _Reader:
    """Takes in annotations one by one, and sorts them by picture at the end."""

    def __init__(
        self, where: str, labels: dict[int, int], image_ids: Sequence[int], sizes: Sequence[tuple[int, ...]]
    ) -> None:
        self._where, self._labels, self._sizes = where, labels, sizes
        self._pictures = {image_id: picture for picture, image_id in enumerate(image_ids)}
        self._ids: set[int] = set()
        # Of each object: picture, label, crowd, ignored; box and area; polygons or run lengths.
        self._flags: list[tuple[int, int, bool, bool]] = []
        self._boxes: list[tuple[float, ...]] = []
        self._outlines: list[list[np.ndarray] | bytes] = []
        self._strangers = 0

    def add(self, entry: dict[str, Any]) -> None:
        number = _integer(entry, "id", "annotation", self._where)
        if number in self._ids:
            raise AnnotationError(f"{self._where}: the annotation id {number} is there twice: number them anew")
        self._ids.add(number)
        label = self._labels.get(_integer(entry, "category_id", "annotation", self._where))
        if label is None:
            self._refuse(number, f"category_id {entry['category_id']}, which is not among the categories")
        picture = self._pictures.get(_integer(entry, "image_id", "annotation", self._where))
        if picture is None:  # as of a data set that was cut down to some of its pictures; upstream reads over them
            self._strangers += 1
            return
        box = entry.get("bbox", [])
        if not _are_numbers(box) or len(box) != 4:
            self._refuse(number, f"bbox {box}: expected four finite numbers, x, y, width and height")
        area = entry.get("area", box[2] * box[3])
        if not _are_numbers([area]):
            self._refuse(number, f"area {area}: expected a finite number")
        self._flags.append((picture, label, bool(entry.get("iscrowd")), bool(entry.get("ignore"))))
        self._boxes.append((*box, area))
        self._outlines.append(self._outline(number, entry.get("segmentation"), self._sizes[picture]))

    def _outline(self, number: int, outline: Any, size: tuple[int, ...]) -> list[np.ndarray] | bytes:
        """Polygons, or compressed run lengths; no polygons where there is nothing."""
        if not outline:
            return []
        if not isinstance(outline, list):
            return self._run_lengths(number, outline, size)
        for position, polygon in enumerate(outline):
            # pycocotools takes the others as the first, which it would take for a box if it had two points.
            least = 4 if position else 6
            if not _are_numbers(polygon) or len(polygon) < least or len(polygon) % 2:
                self._refuse(
                    number, f"polygon {str(polygon)[:80]}: expected x, y, x, y, ... of three or more finite points"
                )
        return [np.array(polygon, np.float64) for polygon in outline]

    def _run_lengths(self, number: int, outline: Any, size: tuple[int, ...]) -> bytes:
        """Compressed, and of all pixels of the picture."""
        counts = outline.get("counts") if isinstance(outline, dict) else None
        if not isinstance(counts, list | str) or list(outline.get("size", ())) != list(size):
            self._refuse(
                number,
                f"segmentation {str(outline)[:80]}: expected polygons, or {{'size': {list(size)}, 'counts': ...}} with "
                "the height and width of its picture",
            )
        runs = counts
        if isinstance(counts, str):
            try:
                runs = decompress(counts.encode()).tolist()
            except ValueError as error:
                self._refuse(number, f"run lengths {counts[:80]!r}: {error}")
        if any(not isinstance(count, int) or count < 0 for count in runs) or sum(runs) != math.prod(size):
            self._refuse(number, f"run lengths that do not add up to the {math.prod(size)} pixels of its picture")
        if isinstance(counts, str):
            return counts.encode()
        return run_lengths.frPyObjects({"size": list(size), "counts": counts}, *size)["counts"]

    def _refuse(self, number: int, problem: str) -> NoReturn:
        raise AnnotationError(f"{self._where}: annotation {number} has {problem}. Mend or remove it")

    def arrays(self) -> dict[str, Any]:
        """What `Annotations` takes of the objects."""
        flags = np.array(self._flags, np.int64).reshape(-1, 4)
        order = np.argsort(flags[:, 0], kind="stable")
        flags, boxes = flags[order], np.array(self._boxes, np.float64).reshape(-1, 5)[order]
        outlines = [self._outlines[row] for row in order.tolist()]
        polygons = [[] if isinstance(outline, bytes) else outline for outline in outlines]
        flat = [polygon for of_object in polygons for polygon in of_object]
        lengths = [outline if isinstance(outline, bytes) else b"" for outline in outlines]
        return {
            "first_object": np.searchsorted(flags[:, 0], np.arange(len(self._sizes) + 1)),
            "boxes": np.ascontiguousarray(boxes[:, :4]),
            "areas": np.ascontiguousarray(boxes[:, 4]),
            "labels": flags[:, 1].astype(np.int32),
            "crowd": flags[:, 2].astype(bool),
            "ignored": flags[:, 3].astype(bool),
            "first_polygon": _firsts(polygons),
            "first_number": _firsts(flat),
            "numbers": np.concatenate([*flat, np.zeros(0)]),
            "first_byte": _firsts(lengths),
            "run_lengths": np.frombuffer(b"".join(lengths), np.uint8),
            "strangers": self._strangers,
        }


def _firsts(parts: Iterable[Sequence[Any] | np.ndarray]) -> np.ndarray:
    """Where each of consecutive parts begins, and where the last one ends."""
    return np.cumsum([0, *(len(part) for part in parts)], dtype=np.int64)


def _entries(content: dict[str, Any], section: str, where: str) -> Iterable[dict[str, Any]]:
    for position, entry in enumerate(content[section]):
        if not isinstance(entry, dict):
            raise AnnotationError(f"{where}: {section}[{position}] is {str(entry)[:80]!r}: expected an object")
        yield entry


def _integer(entry: dict[str, Any], name: str, kind: str, where: str) -> int:
    value = entry.get(name)
    if isinstance(value, bool) or not isinstance(value, int):
        raise AnnotationError(f"{where}: a {kind} has {name} {value!r}: expected a whole number, in {str(entry)[:120]}")
    return value


def _text(entry: dict[str, Any], name: str, where: str) -> str:
    value = entry.get(name)
    if not isinstance(value, str) or not value:
        raise AnnotationError(f"{where}: picture {entry['id']} has {name} {value!r}: expected the name of its file")
    return value


def _check_unique(kind: str, what: str, values: Sequence[Any], where: str) -> None:
    seen = set()
    for value in values:
        if value in seen:
            raise AnnotationError(f"{where}: two {kind} have the {what} {value!r}: expected different ones")
        seen.add(value)


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, int | float) and math.isfinite(value) for value in values)
