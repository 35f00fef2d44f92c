"""What every source of pictures gives: labelled, encoded pictures by position."""

import abc
import dataclasses
import io
from typing import Generic, Protocol, TypeVar, runtime_checkable

import numpy as np

from rmt_jax.data.decode import picture_size

PICTURE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp")


@dataclasses.dataclass(frozen=True)
class Example:
    """One record: the encoded picture, its class, and an id that finds the record again (a file name where known)."""

    image: bytes
    label: int
    id: str


@dataclasses.dataclass(frozen=True)
class SegmentationExample:
    """One record: the encoded picture, the encoded map of its pixels' labels (PNG), and an id of the picture."""

    image: bytes
    label_map: bytes
    id: str


# The outline of an object: polygons, each x, y, x, y, ... in pixels; or COCO's compressed run lengths; or unknown.
Outline = tuple[np.ndarray, ...] | bytes | None


@dataclasses.dataclass(frozen=True)
class Objects:
    """What is annotated in a picture; one row an object.

    Attributes:
        boxes: float32 [objects 4], x1, y1, x2, y2 in pixels of the picture; may stick out of it.
        labels: int32 [objects], 0 .. num_classes - 1.
        crowd: bool [objects], whether the box is around several objects that nobody told apart.
        outlines: of each object.
    """

    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    outlines: tuple[Outline, ...]


@dataclasses.dataclass(frozen=True)
class DetectionExample:
    """One record: the encoded picture, its height and width as annotated, what is in it, and an id of the picture."""

    image: bytes
    size: tuple[int, int]
    objects: Objects
    id: str


@runtime_checkable
class Record(Protocol):
    """What every record has."""

    @property
    def id(self) -> str:
        """Finds it again."""


RecordT = TypeVar("RecordT", bound=Record)


class Source(abc.ABC, Generic[RecordT]):
    """Records by position; can be pickled, worker processes read from a copy.

    Attributes:
        name: for messages and summaries, for example "imagenet2012/train".
        class_names: the name of every class, by label.
    """

    def __init__(self, name: str, class_names: tuple[str, ...]) -> None:
        self.name = name
        self.class_names = class_names

    @property
    def num_classes(self) -> int:
        """Labels are 0 .. num_classes - 1."""
        return len(self.class_names)

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def __getitem__(self, index: int) -> RecordT: ...

    def id(self, index: int) -> str:
        """The id of a picture; sources that know it without reading the picture override this."""
        return self[index].id


class ImageSource(Source[Example]):
    """Pictures of one class each."""


class SegmentationSource(Source[SegmentationExample]):
    """Pictures with a class for every pixel.

    The labels that a map holds may be shifted by `data.segmentation.reduce_zero_label`; classes are numbered and named
    as they are after that.
    """

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of a picture, by its header; sources that need not read the whole record override this.

        Raises:
            CorruptImageError: there is no readable header.
        """
        record = self[index]
        return picture_size(io.BytesIO(record.image), record.id)


def is_picture(name: str) -> bool:
    """Whether a file's name ends like a picture's; hidden files (`._x.jpg` of macOS) are none."""
    return name.lower().endswith(PICTURE_ENDINGS) and not name.rpartition("/")[2].startswith(".")


def check_same_classes(where: str, names: tuple[str, ...], other: str, other_names: tuple[str, ...]) -> None:
    """Two splits must have the same classes: labels are numbered by name, and one more would shift the others silently.

    Raises:
        ValueError: a class is in one of them only.
    """
    differing = sorted(set(names) ^ set(other_names))
    if differing:
        raise ValueError(
            f"{where} and {other} must have the same classes, but {len(differing)} are in one of them "
            f"only: {', '.join(differing[:5])}{', ...' if len(differing) > 5 else ''}"
        )
