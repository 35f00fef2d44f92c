"""Average precision against pycocotools on files, and by hand."""

import contextlib
import io
import json
import pathlib
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as run_lengths
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rmt_jax.data.detection import open_detection_source
from rmt_jax.data.detection.masks import bitmaps
from rmt_jax.tasks import AveragePrecision, Metric
from rmt_jax.tasks.average_precision import FIGURES
from tests.data.detection import standin

CATEGORIES = [{"id": 90, "name": "tree"}, {"id": 3, "name": "ball"}, {"id": 7, "name": "cup"}]
IDS = (3, 7, 90)
SIZE = (150, 200)  # height, width


def rectangle(box: np.ndarray) -> np.ndarray:
    """The mask of a box, uint8 [height width]."""
    left, top, right, bottom = np.rint(box).astype(int)
    mask = np.zeros(SIZE, np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def truth(boxes: dict[int, list[tuple[list[float], int]]], crowds: tuple[int, ...] = ()) -> dict[str, Any]:
    """A data set of pictures 0 .. with [x1 y1 x2 y2] boxes of labels; crowds are the numbers of annotations."""
    annotations: list[dict[str, Any]] = []
    for picture, objects in boxes.items():
        for (left, top, right, bottom), label in objects:
            mask = rectangle(np.array([left, top, right, bottom]))
            counts = run_lengths.encode(np.asfortranarray(mask))["counts"].decode()
            number = len(annotations) + 1
            annotations.append(
                {
                    "id": number,
                    "image_id": 10 + picture,
                    "category_id": IDS[label],
                    "bbox": [left, top, right - left, bottom - top],
                    "area": float(mask.sum()),
                    "iscrowd": int(number in crowds),
                    "segmentation": {"size": list(SIZE), "counts": counts}
                    if number % 2
                    else [[left, top, right, top, right, bottom, left, bottom]],
                }
            )
    images = [
        {"id": 10 + picture, "file_name": f"{picture}.jpg", "height": SIZE[0], "width": SIZE[1]} for picture in boxes
    ]
    return {"images": images, "annotations": annotations, "categories": CATEGORIES}


def many(seed: int) -> tuple[dict[str, Any], list[dict[str, np.ndarray]]]:
    """Objects of all sizes, some crowds, and found ones that are near, doubled, wrong or missing."""
    rng = np.random.default_rng(seed)

    def draw() -> list[float]:
        side = rng.choice([10, 40, 110], 2) * rng.uniform(0.7, 1.3, 2)
        corner = rng.uniform(0, 1, 2) * (np.array(SIZE[::-1]) - side)
        return [*corner.round(2).tolist(), *(corner + side).round(2).tolist()]

    boxes = {picture: [(draw(), int(rng.integers(2))) for _ in range(rng.integers(0, 7))] for picture in range(30)}
    data_set = truth(boxes, crowds=(3, 12, 40))
    outputs = []
    for picture, objects in boxes.items():
        found: list[tuple[list[float], int]] = [(draw(), int(rng.integers(3))) for _ in range(rng.integers(0, 4))]
        for box, label in objects:
            for _ in range(rng.integers(0, 3)):
                moved = np.array(box) + rng.normal(0, 3, 4)
                moved[2:] = np.maximum(moved[2:], moved[:2] + 1)
                found.append((np.clip(moved, 0, [200, 150] * 2).tolist(), label))
        rows = np.array([box for box, _ in found], np.float32).reshape(-1, 4)
        outputs.append(
            {
                "index": np.int32(picture),
                "boxes": rows,
                "scores": rng.choice(np.linspace(0, 1, 12), len(found)).astype(np.float32),  # some are equal
                "labels": np.array([label for _, label in found], np.int32),
                "masks": np.stack([np.zeros(SIZE, np.uint8), *map(rectangle, rows)])[1:],
            }
        )
    return data_set, outputs


def by_pycocotools(folder: pathlib.Path, data_set: Any, results: Any, kind: str) -> COCOeval:
    (folder / "truth.json").write_text(json.dumps(data_set))
    (folder / "results.json").write_text(json.dumps(results))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(folder / "truth.json"))
        evaluation = COCOeval(coco, coco.loadRes(str(folder / "results.json")), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


@pytest.mark.parametrize("seed", [0, 1])
def test_all_figures_are_those_of_pycocotools(tmp_path: pathlib.Path, seed: int) -> None:
    """From files that are written here by hand, and from those that the metric writes."""
    data_set, outputs = many(seed)
    before = json.dumps(data_set)
    metric = AveragePrecision(data_set, masks=True)
    for output in outputs[::-1]:  # in any order
        metric.add(output)
    assert metric.count == 30
    values = metric.compute()
    assert list(values) == [f"{kind}_{name}" for kind in ("box", "mask") for name in FIGURES]
    assert json.dumps(data_set) == before
    for kind, theirs in (("box", "bbox"), ("mask", "segm")):
        results = []
        for output in outputs:
            for box, score, label, mask in zip(
                *(output[k] for k in ("boxes", "scores", "labels", "masks")), strict=True
            ):
                left, top, right, bottom = box.tolist()
                encoded = run_lengths.encode(np.asfortranarray(mask))
                what: Any = (
                    {"bbox": [left, top, right - left, bottom - top]}
                    if kind == "box"
                    else {"segmentation": {**encoded, "counts": encoded["counts"].decode()}}
                )
                category = IDS[label]
                results.append({"image_id": 10 + int(output["index"]), "category_id": category, "score": float(score)})
                results[-1].update(what)
        expected = by_pycocotools(tmp_path, data_set, results, theirs)
        assert 0.1 < expected.stats[0] < 0.9  # there is something to get wrong
        assert [values[f"{kind}_{name}"] for name in FIGURES] == (100 * expected.stats).tolist()
        precision = expected.eval["precision"][:, :, :, 0, -1]
        np.testing.assert_allclose(metric.class_ap(kind)[:2], 100 * precision[..., :2].mean(axis=(0, 1)), rtol=1e-12)
        assert np.isnan(metric.class_ap(kind)[2])  # found, and nowhere to be found
        metric.write_results(tmp_path / "written.json", kind)
        assert json.loads((tmp_path / "written.json").read_text()) == results
    singles = [entry for entry in data_set["annotations"] if not entry["iscrowd"]]
    assert metric.class_counts().tolist() == [
        sum(entry["category_id"] == number for entry in singles) for number in IDS
    ]


def test_by_hand() -> None:
    """Two balls, of which one is found, and a wrong one before it; a cup that is found with an IoU of .8."""
    data_set = truth({0: [([10, 10, 50, 50], 0), ([60, 60, 100, 100], 0)], 1: [([0, 0, 100, 100], 1)]})
    metric = AveragePrecision(data_set)
    metric.add({"index": 0, "boxes": [[100, 0, 140, 40], [10, 10, 50, 50]], "scores": [0.9, 0.8], "labels": [0, 0]})
    metric.add({"index": 1, "boxes": [[0, 0, 100, 80]], "scores": [0.3], "labels": [1]})
    values = metric.compute()
    # Of balls: precision .5 up to a recall of .5, at 51 of the 101 recalls. Of cups: all at seven of the ten IoUs.
    ball, cup = 50 * 51 / 101, 70.0
    np.testing.assert_allclose(metric.class_ap("box"), [ball, cup, np.nan])
    assert values["box_AP"] == pytest.approx((ball + cup) / 2)
    assert values["box_AP50"] == pytest.approx((ball + 100) / 2)
    assert values["box_AP75"] == pytest.approx((ball + 100) / 2)
    assert values["box_APm"] == pytest.approx(ball)
    assert values["box_APl"] == pytest.approx(cup)
    assert values["box_AR1"] == pytest.approx((0 + 70) / 2)  # the wrong one comes first
    assert values["box_AR10"] == values["box_AR100"] == pytest.approx((50 + 70) / 2)
    assert np.isnan(values["box_APs"])
    assert np.isnan(values["box_ARs"])
    assert metric.results("box")[0] == {"image_id": 10, "category_id": 3, "bbox": [100, 0, 40, 40], "score": 0.9}


def test_masks_are_compared_and_not_their_boxes() -> None:
    data_set = truth({0: [([10, 10, 50, 50], 0)]})
    metric = AveragePrecision(data_set, masks=True)
    half = rectangle(np.array([10, 10, 50, 38]))  # IoU 28 / 40
    metric.add({"index": 0, "boxes": [[10, 10, 50, 50]], "scores": [1.0], "labels": [0], "masks": half[None]})
    values = metric.compute()
    assert values["box_AP"] == pytest.approx(100)
    assert values["mask_AP"] == pytest.approx(50)  # at .5 .. .7
    assert values["mask_AP50"] == pytest.approx(100)
    assert values["mask_AP75"] == pytest.approx(0)


def test_small_masks_go_by_their_own_area() -> None:
    """A wrong mask in a large box is a small object that was found, as to COCO's server. To mmdet 2.11 it is large."""
    data_set = truth({0: [([10, 10, 20, 20], 0)]})
    metric = AveragePrecision(data_set, masks=True)
    masks = np.stack([rectangle(np.array([100, 50, 110, 60])), rectangle(np.array([10, 10, 20, 20]))])
    boxes = [[100, 50, 199, 149], [10, 10, 20, 20]]
    metric.add({"index": 0, "boxes": boxes, "scores": [0.9, 0.8], "labels": [0, 0], "masks": masks})
    values = metric.compute()
    assert values["mask_APs"] == pytest.approx(50)
    assert values["box_APs"] == pytest.approx(100)  # the wrong box is a large one


def test_the_truth_of_a_data_set_is_found_in_full(tmp_path: pathlib.Path) -> None:
    """What a source says is there, found as it is: crowds are neither needed nor wrong."""
    source = open_detection_source(standin.config(standin.write(tmp_path, 12)), "train")
    metric = AveragePrecision(source.annotations.data_set(), masks=True)
    assert isinstance(metric, Metric)
    assert metric.class_names == source.class_names
    for index in range(len(source)):
        objects, size = source[index].objects, source[index].size
        found = {
            "index": index,
            "boxes": objects.boxes,
            "scores": np.ones(len(objects.labels)),
            "labels": objects.labels,
            "masks": bitmaps(objects.outlines, size),
        }
        metric.add(found)
    values = metric.compute()
    assert values["box_AP"] == pytest.approx(100)
    assert values["mask_AP"] == pytest.approx(100)
    assert metric.class_counts().tolist() == np.bincount(source.annotations.labels[source.annotations.single]).tolist()


def test_only_pictures_that_were_added_count() -> None:
    data_set = truth({0: [([10, 10, 50, 50], 0)], 1: [([10, 10, 50, 50], 0)]})
    metric = AveragePrecision(data_set)
    metric.add({"index": 1, "boxes": [[10, 10, 50, 50]], "scores": [0.5], "labels": [0]})
    assert metric.compute()["box_AP"] == pytest.approx(100)
    metric.add({"index": 0, "boxes": np.zeros((0, 4)), "scores": [], "labels": []})
    assert metric.compute()["box_AP"] == pytest.approx(100 * 51 / 101)


def test_nothing_found_is_zero_and_nothing_added_an_error() -> None:
    metric = AveragePrecision(truth({0: [([10, 10, 50, 50], 0)]}), masks=True)
    with pytest.raises(ValueError, match="No picture to evaluate"):
        metric.compute()
    empty = np.zeros((0, *SIZE), bool)
    metric.add({"index": 0, "boxes": np.zeros((0, 4)), "scores": np.zeros(0), "labels": np.zeros(0), "masks": empty})
    values = metric.compute()
    assert values["box_AP"] == values["mask_AR100"] == 0
    assert np.isnan(values["box_APl"])


def test_processes_put_their_pictures_together() -> None:
    data_set, outputs = many(0)
    whole, *parts = (AveragePrecision(data_set, masks=True) for _ in range(3))
    for number, output in enumerate(outputs):
        whole.add(output)
        parts[number % 2].add(output)
    assert parts[0].compute() != whole.compute()
    for part in parts:
        parts[0].load(part.dump())
    assert parts[0].compute() == whole.compute()
    assert parts[0].results("mask") == whole.results("mask")


def test_run_lengths_in_place_of_masks() -> None:
    data_set, outputs = many(1)
    plain, encoded = (AveragePrecision(data_set, masks=True) for _ in range(2))
    for output in outputs:
        plain.add(output)
        masks = [run_lengths.encode(np.asfortranarray(mask)) for mask in output["masks"]]
        encoded.add({**output, "masks": masks})
    assert encoded.results("mask") == plain.results("mask")


ONE = {"index": 0, "boxes": [[1, 2, 3, 4]], "scores": [0.5], "labels": [0]}


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({"boxes": [[1, 2, 3, 4], [1, 2, 3, 4]]}, r"boxes \(2, 4\), scores \(1,\), labels \(1,\): expected a row each"),
        ({"labels": [3]}, r"labels 3 \.\. 3: expected 0 \.\. 2"),
        ({"scores": [float("nan")]}, "picture 0: a box or a score is not finite"),
        ({"masks": np.zeros((1, 3, 4), bool)}, r"masks \(1, 3, 4\): expected \(1, 150, 200\)"),
        ({"masks": []}, "0 masks of 1 objects"),
    ],
)
def test_outputs_that_do_not_fit(outputs: dict[str, Any], message: str) -> None:
    metric = AveragePrecision(truth({0: []}), masks="masks" in outputs)
    with pytest.raises(ValueError, match=message):
        metric.add({**ONE, **outputs})


def test_a_picture_twice_and_objects_without_masks() -> None:
    data_set = truth({0: [([10, 10, 50, 50], 0)]})
    metric = AveragePrecision(data_set)
    metric.add(ONE)
    with pytest.raises(ValueError, match="picture 0 was added before"):
        metric.add(ONE)
    del data_set["annotations"][0]["segmentation"]
    AveragePrecision(data_set)
    with pytest.raises(ValueError, match="1 of 1 objects have no mask to compare with, the first is annotation 1"):
        AveragePrecision(data_set, masks=True)
