"""TFDS data sets with boxes, by position. They have no outlines: COCO's are in its json alone."""

import io
import logging
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from rmt_jax.data.decode import picture_size
from rmt_jax.data.detection.annotations import Annotations
from rmt_jax.data.detection.coco_json import parse_coco
from rmt_jax.data.detection.source import DetectionSource
from rmt_jax.data.detection.stored import stored_annotations
from rmt_jax.data.tfds_source import TfdsRecords, features_of

# COCO's own numbers of its 80 categories, which TFDS numbers 0 .. 79: 1 .. 90 without those that were never used.
_COCO_IDS = tuple(sorted({*range(1, 91)} - {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}))


class DetectionTfdsSource(DetectionSource):
    """One split of a prepared TFDS data set with the features `image` and `objects`, `bbox` and `label` among these.

    TFDS does not say how large pictures are: all records are read once, and what they say is kept beside them.

    Raises:
        FileNotFoundError: it is not prepared.
        ValueError: it has no such features or split.
        AnnotationError: a record does not say what its picture shows.
    """

    def __init__(self, builder: tfds.core.DatasetBuilder, split: str) -> None:
        features = features_of(builder)
        if not has_boxes(features):
            raise ValueError(
                f"TFDS data set {builder.info.full_name} has the features {', '.join(features)}: expected a picture "
                "`image` and `objects` with `bbox` and `label`"
            )
        self._records = TfdsRecords(builder, split, ("image",))
        key = [builder.info.full_name, split, len(self._records)]
        file = builder.data_path / f"{urllib.parse.quote(split, safe='')}.arrays"
        super().__init__(self._records.name, stored_annotations(key, lambda: self._read(builder), str(file)))

    def image(self, index: int) -> bytes:
        """The picture in the record."""
        return self._records[index][0]["image"]

    def _read(self, builder: tfds.core.DatasetBuilder) -> Annotations:
        """Of all records, as if they were COCO's json, and with the same checks."""
        logging.getLogger(__name__).info("reading all %d records of %s, once", len(self._records), self._records.name)
        names = features_of(builder)["objects"].feature["label"].names
        ids = _COCO_IDS if builder.info.name == "coco" else range(1, len(names) + 1)
        content: dict[str, list[dict[str, Any]]] = {
            "images": [],
            "annotations": [],
            "categories": [{"id": number, "name": name} for number, name in zip(ids, names, strict=True)],
        }
        for position in range(len(self._records)):
            record, record_id = self._records[position]
            image_id = int(record.get("image/id", position + 1))
            height, width = picture_size(io.BytesIO(record["image"]), record_id)
            content["images"].append({"id": image_id, "file_name": record_id, "height": height, "width": width})
            for entry in _objects(record["objects"], (height, width)):
                number = len(content["annotations"]) + 1
                entry |= {"id": number, "image_id": image_id, "category_id": ids[entry.pop("label")]}
                content["annotations"].append(entry)
        return parse_coco(content, self._records.name)


def has_boxes(features: Mapping[str, Any]) -> bool:
    """Whether a data set with these features is one of pictures with boxes and classes."""
    inner = getattr(features.get("objects"), "feature", {})
    return (
        isinstance(features.get("image"), tfds.features.Image)
        and isinstance(inner, tfds.features.FeaturesDict)
        and isinstance(dict(inner).get("bbox"), tfds.features.BBoxFeature)
        and isinstance(dict(inner).get("label"), tfds.features.ClassLabel)
    )


def _objects(objects: Mapping[str, Sequence[Any] | np.ndarray], size: tuple[int, int]) -> Iterator[dict[str, Any]]:
    """Entries of COCO's json, but for numbers and with "label".

    TFDS divides boxes by the size of the picture, in float32. COCO's coordinates have two decimals, so that rounding
    gives them back. Areas are whole there, without their decimals; where there are none, they are the boxes'.
    """
    corners = np.asarray(objects["bbox"], np.float64).reshape(-1, 4) * np.tile(size, 2)
    for row, (top, left, bottom, right) in enumerate(np.round(corners, 2).tolist()):
        width, height = round(right - left, 2), round(bottom - top, 2)
        yield {
            "label": int(objects["label"][row]),
            "bbox": [left, top, width, height],
            "area": float(objects["area"][row]) if "area" in objects else width * height,
            "iscrowd": int(objects["is_crowd"][row]) if "is_crowd" in objects else 0,
        }
