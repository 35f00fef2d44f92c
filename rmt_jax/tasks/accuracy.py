"""How many pictures are classified right, over all classes and within each."""

from collections.abc import Mapping

import numpy as np


class TopK:
    """Top-1 and top-5 accuracy in percent, of each class too, and the mean cross entropy against the plain labels.

    Args:
        num_classes: labels are 0 .. num_classes - 1.

    Attributes:
        count: pictures added.
        class_counts: int64 [classes], pictures of each class.
        confusion: int64 [classes classes], pictures of the class of the row that were taken for that of the column. A
            picture whose logits hold NaN is taken for none.
    """

    def __init__(self, num_classes: int) -> None:
        self.count, self.top1, self.top5, self.loss = 0, 0, 0, 0.0
        self.class_counts = np.zeros(num_classes, np.int64)
        self.confusion = np.zeros((num_classes, num_classes), np.int64)

    def add(self, outputs: Mapping[str, np.ndarray]) -> None:
        """Take in {"logits" [batch classes], "label" [batch], "mask" [batch]}; padding does not count."""
        mask = outputs["mask"]
        logits, label = outputs["logits"][mask].astype(np.float64), outputs["label"][mask]
        true = np.take_along_axis(logits, label[:, None], axis=-1)
        # Ties go to the lower class, as in a stable sort. "Not lower" instead of "higher" so that NaN is never right.
        earlier = np.arange(logits.shape[-1]) < label[:, None]
        rank = (~(logits < true) & ((logits != true) | earlier)).sum(axis=-1)
        shifted = logits - logits.max(axis=-1, keepdims=True)
        self.count += len(label)
        self.top1 += int((rank < 1).sum())
        self.top5 += int((rank < 5).sum())
        log_sum = np.log(np.exp(shifted).sum(axis=-1))
        self.loss += float((log_sum - np.take_along_axis(shifted, label[:, None], axis=-1)[:, 0]).sum())
        np.add.at(self.class_counts, label, 1)
        decided = ~np.isnan(logits).any(axis=-1)
        np.add.at(self.confusion, (label[decided], logits[decided].argmax(axis=-1)), 1)

    @property
    def class_accuracy(self) -> np.ndarray:
        """Percent of each class that is right, float64 [classes]; NaN of a class without a picture."""
        right = 100 * np.diagonal(self.confusion).astype(np.float64)
        return np.divide(right, self.class_counts, out=np.full_like(right, np.nan), where=self.class_counts > 0)

    def compute(self) -> dict[str, float]:
        """{"top1": percent, "top5": percent, "loss": nats, "mean_per_class": percent}.

        The mean per-class accuracy is the mean of `class_accuracy` over the classes that have a picture.

        Raises:
            ValueError: nothing was added.
        """
        if not self.count:
            raise ValueError("No sample to evaluate: the evaluation split is empty.")
        return {
            "top1": 100 * self.top1 / self.count,
            "top5": 100 * self.top5 / self.count,
            "loss": self.loss / self.count,
            "mean_per_class": float(np.nanmean(self.class_accuracy)),
        }
