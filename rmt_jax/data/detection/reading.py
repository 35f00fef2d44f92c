"""A record to arrays, with everything checked that a wrong one would spoil in silence."""

import numpy as np

from rmt_jax.data.decode import CorruptImageError, decode
from rmt_jax.data.detection.annotations import AnnotationError
from rmt_jax.data.detection.masks import bitmaps
from rmt_jax.data.detection.source import DetectionSource
from rmt_jax.data.detection.transforms import Instances
from rmt_jax.data.interface import DetectionExample

_TURNED = ". Was the picture turned by its EXIF orientation when it was annotated? It is not here"

# Records that are read before a run starts; `rmt data check` reads all.
_TRIED = 20


def read_image(example: DetectionExample) -> np.ndarray:
    """The picture of a record, uint8 RGB [height width 3].

    Raises:
        CorruptImageError: it cannot be decoded.
        AnnotationError: it has another size than its annotations say.
    """
    image = np.asarray(decode(example.image, example.id))
    if image.shape[:2] != example.size:
        turned = image.shape[1::-1] == example.size
        raise AnnotationError(
            f"the picture {example.id!r} has {image.shape[1]} x {image.shape[0]} pixels (width x height), its "
            f"annotations are of {example.size[1]} x {example.size[0]}: expected the same{_TURNED if turned else ''}"
        )
    return image


def read_instances(example: DetectionExample, *, masks: bool) -> Instances:
    """The objects of a record that are trained on: crowds are none.

    Raises:
        AnnotationError: masks are wanted, and one cannot be read.
    """
    objects = example.objects
    single = np.flatnonzero(~objects.crowd)
    drawn = None
    if masks:
        try:
            drawn = bitmaps([objects.outlines[row] for row in single], example.size)
        except ValueError as error:
            raise AnnotationError(f"a mask of the picture {example.id!r} cannot be read: {error}") from error
    return Instances(objects.boxes[single], objects.labels[single], drawn)


def try_examples(source: DetectionSource, *, masks: bool) -> None:
    """Read some records, evenly spread, so that annotations of other pictures are found before a run starts.

    Raises:
        AnnotationError: see `read_image` and `read_instances`. Damaged files are left to those who count them.
    """
    for index in np.unique(np.linspace(0, len(source) - 1, _TRIED).astype(np.int64)).tolist():
        example = source[index]
        read_instances(example, masks=masks)
        try:
            read_image(example)
        except CorruptImageError:
            continue
