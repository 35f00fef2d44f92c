"""What every source of pictures with boxes gives."""

import abc
import logging
import os

from rmt_jax.data.detection.annotations import Annotations
from rmt_jax.data.interface import DetectionExample, Source


class DetectionSource(Source[DetectionExample]):
    """Pictures with boxes, and outlines where there are.

    Attributes:
        annotations: of all pictures.
    """

    def __init__(self, name: str, annotations: Annotations) -> None:
        super().__init__(name, annotations.class_names)
        self.annotations = annotations
        self._report()

    def __len__(self) -> int:
        return len(self.annotations)

    def id(self, index: int) -> str:
        """The picture's file name."""
        return os.fsdecode(self.annotations.file_names[index])

    def __getitem__(self, index: int) -> DetectionExample:
        height, width = self.annotations.sizes[index].tolist()
        return DetectionExample(self.image(index), (height, width), self.annotations.objects(index), self.id(index))

    @abc.abstractmethod
    def image(self, index: int) -> bytes:
        """An encoded picture."""

    def _report(self) -> None:
        """Say what counts for nothing."""
        counts = {reason: int(marked.sum()) for reason, marked in self.annotations.left_out().items()}
        counts["of pictures that are not in the data set"] = self.annotations.strangers
        words = [f"{count:,} {reason}" for reason, count in counts.items() if count]
        if words:
            logging.getLogger(__name__).warning(
                "%s: left out of %s annotations: %s",
                self.name,
                f"{len(self.annotations.boxes) + self.annotations.strangers:,}",
                ", ".join(words),
            )
