"""Label maps: from PNG files to classes, with everything checked that a wrong one would spoil in silence."""

import io
from typing import NoReturn

import numpy as np
from PIL import Image

from rmt_jax.data.decode import DAMAGE, CorruptImageError, decode
from rmt_jax.data.interface import SegmentationExample, SegmentationSource

# Pixels with this label count for nothing, and padding has it.
IGNORE_LABEL = 255

_PNG_START = b"\x89PNG\r\n\x1a\n"
_GREY, _INDEXED = 0, 3
_COLOR_TYPES = {_GREY: "grey", 2: "RGB", _INDEXED: "indexed", 4: "grey with transparency", 6: "RGBA"}

_TURNED = ". Was the picture turned by its EXIF orientation when it was labelled? It is not here"

# Records that are read before a run starts; `rmt data check` reads all.
_TRIED = 20


class LabelMapError(ValueError):
    """A label map that does not say what its picture shows; the message names it. One is enough to stop a run."""


def decode_label_map(data: bytes, record_id: str) -> np.ndarray:
    """The labels in a PNG, uint8 [height width]: its grey values or its colours' indices.

    Raises:
        CorruptImageError: the bytes are damaged or cut off.
        LabelMapError: not a PNG, or one of true colour or another depth, whose values are no classes.
    """
    if not data.startswith(_PNG_START):
        _raise_no_png(data, record_id)
    try:
        depth, color_type = data[24], data[25]  # the header comes first in every PNG
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            labels = np.asarray(image).astype(np.uint8)
    except DAMAGE as error:
        raise CorruptImageError(f"cannot decode the label map of {record_id!r} ({len(data)} bytes): {error}") from error
    # Pillow stretches grey of 2 and 4 bits to 0 .. 255, which would change the labels.
    if color_type != _INDEXED and (color_type, depth) not in ((_GREY, 1), (_GREY, 8)):
        raise LabelMapError(
            f"the label map of {record_id!r} is a PNG in {depth}-bit {_COLOR_TYPES.get(color_type, color_type)}: "
            "expected 8-bit grey or indexed colours, whose values are the classes. Translate colours to classes and "
            'save with Pillow: Image.fromarray(classes.astype("uint8")).save(NAME.png)'
        )
    return labels


def _raise_no_png(data: bytes, record_id: str) -> NoReturn:
    """The error that fits: a picture of another format, or nothing that can be read."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            found = image.format
    except DAMAGE as error:
        raise CorruptImageError(f"the label map of {record_id!r} is no picture ({len(data)} bytes): {error}") from error
    raise LabelMapError(
        f"the label map of {record_id!r} is a {found}: expected a PNG, which keeps every label as it is; make it anew "
        "from the annotations, because compression may have changed the labels"
    )


def reduce_zero_label(labels: np.ndarray) -> np.ndarray:
    """Labels whose 0 is no class: 0 becomes 255, k becomes k - 1, 255 stays; uint8, any shape.

    Source: mmsegmentation `LoadAnnotations`.
    """
    return np.where(labels == IGNORE_LABEL, IGNORE_LABEL, labels - np.uint8(1)).astype(np.uint8)  # 0 - 1 wraps to 255


def check_range(labels: np.ndarray, record_id: str, num_classes: int, *, reduced: bool) -> None:
    """Labels as they are stored must be classes, 255, or the 0 that `reduce_zero_label` takes away.

    Raises:
        LabelMapError: one is neither.
    """
    largest = num_classes if reduced else num_classes - 1
    wrong = (labels > largest) & (labels != IGNORE_LABEL)
    if not wrong.any():
        return
    found = int(labels[wrong].min())
    hint = f"{num_classes} is the number of classes that the data set or data.segmentation.num_classes says"
    if not reduced and int(labels[wrong].max()) == num_classes:
        hint = (
            f"where 0 is no class and 1 .. {num_classes} are the classes, set data.segmentation.reduce_zero_label=True"
        )
    elif reduced:
        hint += ", without the 0 that data.segmentation.reduce_zero_label takes away"
    raise LabelMapError(
        f"the label map of {record_id!r} holds label {found}: expected 0 .. {largest}, or {IGNORE_LABEL} for pixels to "
        f"ignore; {hint}"
    )


def read_example(example: SegmentationExample, num_classes: int, *, reduced: bool) -> tuple[np.ndarray, np.ndarray]:
    """A record as picture, uint8 RGB [height width 3], and labels, uint8 [height width], checked.

    Args:
        example: the record.
        num_classes: labels are 0 .. num_classes - 1, or `IGNORE_LABEL`.
        reduced: take label 0 away, see `reduce_zero_label`.

    Raises:
        CorruptImageError: the picture or the label map cannot be decoded.
        LabelMapError: the label map does not fit its picture or the classes.
    """
    image = np.asarray(decode(example.image, example.id))
    labels = decode_label_map(example.label_map, example.id)
    if labels.shape != image.shape[:2]:
        turned = labels.shape == image.shape[1::-1]
        raise LabelMapError(
            f"the picture {example.id!r} has {_size(image)} pixels (width x height), its label map {_size(labels)}: "
            f"expected the same{_TURNED if turned else ''}"
        )
    check_range(labels, example.id, num_classes, reduced=reduced)
    return image, reduce_zero_label(labels) if reduced else labels


def try_examples(source: SegmentationSource, *, reduced: bool) -> None:
    """Read some records, evenly spread, so that label maps of a wrong kind are found before a run starts.

    Raises:
        LabelMapError: see `read_example`. Damaged files are left to those who count them.
    """
    for index in np.unique(np.linspace(0, len(source) - 1, _TRIED).astype(np.int64)).tolist():
        try:
            read_example(source[index], source.num_classes, reduced=reduced)
        except CorruptImageError:
            continue


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]} x {array.shape[0]}"
