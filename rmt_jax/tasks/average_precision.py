"""How well objects are found: COCO's average precision and recall of boxes and masks, by pycocotools itself."""

import contextlib
import dataclasses
import io
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pycocotools import mask as run_lengths
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

Kind = Literal["box", "mask"]

# What pycocotools calls them, and its twelve figures in its order.
_KINDS = {"box": "bbox", "mask": "segm"}
FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


@dataclasses.dataclass(frozen=True)
class _Found:
    """What was found in a picture, one row an object: boxes x1 y1 x2 y2; run lengths in place of masks, or none."""

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    counts: tuple[bytes, ...] | None


class AveragePrecision:
    """Average precision (AP) and recall (AR) over the pictures that were added, in percent.

    AP is the mean over IoU .5, .55, ... .95 of the area under the curve of precision over recall, and over the classes;
    AP50 and AP75 are at one IoU; s, m and l are objects of less than 32 x 32 pixels, of less than 96 x 96, and others;
    AR1, AR10 and AR100 are the recall of that many objects a picture and class. What the truth calls a crowd counts
    neither as found nor as missed. A figure without any object to find is NaN; pycocotools says -1.

    Found objects go by the area of their masks where masks are evaluated. mmdet 2.11 has their boxes' area there, which
    changes the s, m and l of masks, and nothing else.

    Args:
        truth: a data set in COCO's form: {"images", "annotations", "categories"}.
        masks: evaluate masks as well as boxes.

    Attributes:
        class_names: of the categories by ascending id, which labels number from 0.

    Raises:
        ValueError: masks are to be evaluated, and an object has none.
    """

    def __init__(self, truth: Mapping[str, Sequence[Mapping[str, Any]]], *, masks: bool = False) -> None:
        self._kinds: tuple[Kind, ...] = ("box", "mask") if masks else ("box",)
        missing = [entry["id"] for entry in truth["annotations"] if "segmentation" not in entry] if masks else []
        if missing:
            raise ValueError(
                f"{len(missing):,} of {len(truth['annotations']):,} objects have no mask to compare with, the first is "
                f"annotation {missing[0]}: evaluate boxes alone, or add the masks"
            )
        categories = sorted(truth["categories"], key=lambda entry: entry["id"])
        self.class_names = tuple(str(entry["name"]) for entry in categories)
        self._category_ids = [int(entry["id"]) for entry in categories]
        self._images = [dict(entry) for entry in truth["images"]]
        # pycocotools writes into them.
        self._truth = _quietly(_coco, self._images, [dict(entry) for entry in truth["annotations"]], categories)
        self._found: dict[int, _Found] = {}
        self._evaluated: dict[Kind, COCOeval] = {}

    @property
    def count(self) -> int:
        """Pictures added."""
        return len(self._found)

    def add(self, outputs: Mapping[str, Any]) -> None:
        """Take in what was found in one picture, in its original size.

        Args:
            outputs: {"index": position in the truth's images, "boxes": [found 4], x1, y1, x2, y2, "scores": [found],
                "labels": [found]} and, with masks, {"masks": bool or uint8 [found height width], or as many of COCO's
                run lengths, {"size", "counts"}}.

        Raises:
            ValueError: the picture was added before, or the arrays do not fit each other or the picture.
        """
        index = int(outputs["index"])
        boxes, scores = np.asarray(outputs["boxes"], np.float64), np.asarray(outputs["scores"], np.float64)
        labels = np.asarray(outputs["labels"]).astype(np.int64)
        if index in self._found:
            raise ValueError(f"picture {index} was added before")
        if boxes.shape != (len(scores), 4) or labels.shape != scores.shape or scores.ndim != 1:
            raise ValueError(f"boxes {boxes.shape}, scores {scores.shape}, labels {labels.shape}: expected a row each")
        if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
            raise ValueError(f"picture {index}: a box or a score is not finite")
        if labels.size and not 0 <= labels.min() <= labels.max() < len(self.class_names):
            raise ValueError(f"labels {labels.min()} .. {labels.max()}: expected 0 .. {len(self.class_names) - 1}")
        counts = self._encode(index, outputs["masks"], len(scores)) if "mask" in self._kinds else None
        self._found[index] = _Found(boxes, scores, labels, counts)
        self._evaluated = {}

    def compute(self) -> dict[str, float]:
        """{"box_AP", "box_AP50", ... "mask_ARl"}: all of `FIGURES`, percent.

        Raises:
            ValueError: nothing was added.
        """
        values: dict[str, float] = {}
        for kind in self._kinds:
            stats = np.asarray(self._evaluate(kind).stats, np.float64)
            values |= {f"{kind}_{name}": _percent(value) for name, value in zip(FIGURES, stats, strict=True)}
        return values

    def class_ap(self, kind: Kind) -> np.ndarray:
        """AP of each class, percent, float64 [classes]; NaN of those that are not there."""
        # IoU, recall, class, area, number of objects: over all areas, with the most objects.
        precision = self._evaluate(kind).eval["precision"][:, :, :, 0, -1]
        return np.array([_percent(of_class.mean()) for of_class in np.moveaxis(precision, 2, 0)])

    def class_counts(self) -> np.ndarray:
        """Objects of each class in the pictures that were added, without crowds, int64 [classes]."""
        images = {self._images[index]["id"] for index in self._found}
        entries = (entry for entry in self._truth.dataset["annotations"] if entry["image_id"] in images)
        counted = [entry["category_id"] for entry in entries if not entry.get("iscrowd")]
        return np.bincount(np.searchsorted(self._category_ids, counted), minlength=len(self._category_ids))

    def results(self, kind: Kind) -> list[dict[str, Any]]:
        """Everything found, in the form of COCO's results."""
        entries: list[dict[str, Any]] = []
        for index, found in sorted(self._found.items()):
            image = self._images[index]
            sizes = found.boxes[:, 2:] - found.boxes[:, :2]
            for row, (label, score) in enumerate(zip(found.labels.tolist(), found.scores.tolist(), strict=True)):
                entry = {"image_id": image["id"], "category_id": self._category_ids[label]}
                if kind == "box":
                    entry["bbox"] = [*found.boxes[row, :2].tolist(), *sizes[row].tolist()]
                elif found.counts is not None:
                    size = [image["height"], image["width"]]
                    entry["segmentation"] = {"size": size, "counts": found.counts[row].decode()}
                entries.append({**entry, "score": score})
        return entries

    def write_results(self, path: pathlib.Path, kind: Kind) -> None:
        """Write `results` as json, which COCO's server and pycocotools read."""
        path.write_text(json.dumps(self.results(kind), allow_nan=False), encoding="utf-8")

    def dump(self) -> bytes:
        """Everything added, for `load` in another process."""
        return json.dumps(
            {
                index: [
                    *(array.tolist() for array in (found.boxes, found.scores, found.labels)),
                    None if found.counts is None else [counts.decode() for counts in found.counts],
                ]
                for index, found in self._found.items()
            }
        ).encode()

    def load(self, dumped: bytes) -> None:
        """Take in what another process has dumped; pictures that are here already stay as they are."""
        for index, (boxes, scores, labels, counts) in json.loads(dumped).items():
            encoded = None if counts is None else tuple(part.encode() for part in counts)
            arrays = np.array(boxes, np.float64).reshape(-1, 4), np.array(scores, np.float64)
            self._found.setdefault(int(index), _Found(*arrays, np.array(labels, np.int64), encoded))
        self._evaluated = {}

    def _encode(self, index: int, masks: Any, number: int) -> tuple[bytes, ...]:
        """Run lengths of the masks of a picture."""
        size = (self._images[index]["height"], self._images[index]["width"])
        if isinstance(masks, np.ndarray):
            if masks.shape != (number, *size):
                raise ValueError(f"masks {masks.shape}: expected {(number, *size)}, for each object one of its picture")
            masks = run_lengths.encode(np.asfortranarray(np.asarray(masks, bool).view(np.uint8).transpose(1, 2, 0)))
        if len(masks) != number or any(tuple(mask["size"]) != size for mask in masks):
            raise ValueError(f"{len(masks)} masks of {number} objects: expected one of {size} each")
        counts = (mask["counts"] for mask in masks)
        return tuple(part.encode() if isinstance(part, str) else bytes(part) for part in counts)

    def _evaluate(self, kind: Kind) -> COCOeval:
        if not self._found:
            raise ValueError("No picture to evaluate: nothing was added.")
        if kind not in self._evaluated:
            self._evaluated[kind] = _quietly(self._run, kind)
        return self._evaluated[kind]

    def _run(self, kind: Kind) -> COCOeval:
        results = self.results(kind)
        found = self._truth.loadRes(results) if results else _coco(self._images, [], self._truth.dataset["categories"])
        evaluation = COCOeval(self._truth, found, _KINDS[kind])
        evaluation.params.imgIds = sorted(self._images[index]["id"] for index in self._found)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        return evaluation


def _coco(images: list[Any], annotations: list[Any], categories: Sequence[Any]) -> COCO:
    """pycocotools' own index of a data set."""
    coco = COCO()
    coco.dataset = {"images": images, "annotations": annotations, "categories": [*categories]}
    coco.createIndex()
    return coco


def _quietly(function: Any, *arguments: Any) -> Any:
    """Call what prints how it goes on."""
    with contextlib.redirect_stdout(io.StringIO()):
        return function(*arguments)


def _percent(value: float) -> float:
    return 100 * float(value) if value > -1 else float("nan")
