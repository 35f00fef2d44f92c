"""What every source of pictures gives: labelled, encoded pictures by position."""

import abc
import dataclasses

PICTURE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp")


@dataclasses.dataclass(frozen=True)
class Example:
    """One record: the encoded picture, its class, and an id that finds the record again (a file name where known)."""

    image: bytes
    label: int
    id: str


class ImageSource(abc.ABC):
    """Labelled pictures by position; can be pickled, worker processes read from a copy.

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
    def __getitem__(self, index: int) -> Example: ...

    def id(self, index: int) -> str:
        """The id of a picture; sources that know it without reading the picture override this."""
        return self[index].id


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
