"""How well label maps are predicted: intersection over union, and pixels that are right."""

from collections.abc import Mapping

import numpy as np

IGNORE_LABEL = 255


class MeanIoU:
    """Intersection over union of each class and pixel accuracies, in percent, over all pixels that have a label.

    Source: mmseg `eval_metrics`.

    Args:
        num_classes: labels are 0 .. num_classes - 1, or 255 for pixels that do not count.

    Attributes:
        count: pictures added.
        confusion: int64 [classes classes], pixels of the class of the row that were taken for that of the column.
    """

    def __init__(self, num_classes: int) -> None:
        self.count = 0
        self.confusion = np.zeros((num_classes, num_classes), np.int64)

    def add(self, outputs: Mapping[str, np.ndarray]) -> None:
        """Take in one picture: {"classes": predicted, "label": the truth}, both [height width]."""
        classes, label = outputs["classes"], outputs["label"]
        if classes.shape != label.shape:
            raise ValueError(f"predicted classes are {classes.shape}, the label map is {label.shape}")
        counts = label != IGNORE_LABEL
        size = len(self.confusion)
        pairs = size * label[counts].astype(np.int64) + classes[counts]
        self.confusion += np.bincount(pairs, minlength=size**2).reshape(size, size)
        self.count += 1

    @property
    def class_pixels(self) -> np.ndarray:
        """Labelled pixels of each class, int64 [classes]."""
        return self.confusion.sum(axis=1)

    @property
    def class_iou(self) -> np.ndarray:
        """Percent, float64 [classes]; NaN of a class that is neither there nor predicted."""
        right = np.diagonal(self.confusion)
        return _percent(right, self.class_pixels + self.confusion.sum(axis=0) - right)

    @property
    def class_accuracy(self) -> np.ndarray:
        """Percent of a class's pixels that are right, float64 [classes]; NaN of a class without pixels."""
        return _percent(np.diagonal(self.confusion), self.class_pixels)

    def compute(self) -> dict[str, float]:
        """{"mIoU", "aAcc", "mAcc"}, percent: means over the classes that are not NaN, and over all pixels.

        Raises:
            ValueError: nothing was added.
        """
        if not self.confusion.any():
            raise ValueError("No labelled pixel to evaluate: the evaluation split is empty, or all of it is ignored.")
        return {
            "mIoU": float(np.nanmean(self.class_iou)),
            "aAcc": float(100 * np.trace(self.confusion) / self.confusion.sum()),
            "mAcc": float(np.nanmean(self.class_accuracy)),
        }


def _percent(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(100.0 * part, whole, out=np.full(len(whole), np.nan), where=whole > 0)
