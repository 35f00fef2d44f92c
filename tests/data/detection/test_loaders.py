"""Canvases to train on and whole pictures to evaluate: the same whatever the processes, threads and first step."""

import collections
import dataclasses
import hashlib
import pathlib
from typing import Any

import numpy as np
import pytest

from rmt_jax.data import AugmentConfig, DataConfig, TooManyUnreadableError
from rmt_jax.data.detection import AnnotationError, DetectionEvalLoader, DetectionTrainLoader, open_detection_source
from rmt_jax.data.detection.changes import Change
from rmt_jax.data.detection.masks import bitmap
from rmt_jax.data.detection.order import CanvasOrder
from rmt_jax.data.detection.transforms import canvas_size, padded_size
from rmt_jax.data.resize import rescaled_size, resize_image
from tests.data.detection import standin
from tests.data.detection.standin import MANY, SMALL

COUNT, BATCH = 23, 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Not to be changed."""
    return standin.write(tmp_path_factory.mktemp("folder"), COUNT)


def digest(batch: dict[str, np.ndarray]) -> str:
    return hashlib.sha256(b"".join(batch[key].tobytes() for key in sorted(batch))).hexdigest()


def train_loaders(config: DataConfig, process_count: int = 1, **changes: int) -> list[DetectionTrainLoader]:
    source = open_detection_source(config, "train")
    options = {"batch_size": BATCH, "seed": 3, **changes}
    return [
        DetectionTrainLoader(source, config, **options, process_index=process, process_count=process_count)
        for process in range(process_count)
    ]


def train_digests(config: DataConfig, steps: tuple[int, int], process_count: int = 1, **changes: int) -> list[str]:
    """A hash for every global batch, put together from what the processes yield."""
    loaders = train_loaders(config, process_count, **changes)
    parts = zip(*(loader.batches(*steps) for loader in loaders), strict=True)
    return [digest({key: np.concatenate([part[key] for part in step]) for key in step[0]}) for step in parts]


def test_batches_have_the_promised_shapes(folder: pathlib.Path) -> None:
    loader = train_loaders(standin.config(folder, MANY), 2)[1]
    assert loader.left_out == {"without objects": 1}
    assert loader.steps_per_epoch == 6  # 22 pictures
    canvases = set()
    for batch in loader.batches(0, 12):
        height, width = batch["image"].shape[1:3]
        assert {key: (value.shape, value.dtype) for key, value in batch.items()} == {
            "image": ((2, height, width, 3), np.uint8),
            "image_size": ((2, 2), np.int32),
            "pad_size": ((2, 2), np.int32),
            "boxes": ((2, 5, 4), np.float32),
            "labels": ((2, 5), np.int32),
            "valid": ((2, 5), np.bool_),
            "masks": ((2, 5, height, width // 8), np.uint8),
        }
        for size, pad, image in zip(batch["image_size"].tolist(), batch["pad_size"], batch["image"], strict=True):
            assert canvas_size((size[0], size[1]), (96, 64)) == (height, width)
            assert tuple(pad) == padded_size((size[0], size[1]))
            assert image[: size[0], : size[1]].any(axis=(1, 2)).all()
            assert not image[size[0] :].any()
            assert not image[:, size[1] :].any()
        canvases.add((height, width))
    assert canvases == {(64, 96), (96, 64)}
    [batch] = train_loaders(standin.config(folder, dataclasses.replace(SMALL, masks=False)))[0].batches(0, 1)
    assert "masks" not in batch


def test_objects_are_where_they_were(folder: pathlib.Path) -> None:
    """Twice as large and not flipped: every object of every picture, by hand."""
    sizes = dataclasses.replace(SMALL, scales=((192, 192),), canvas=(192, 192), flip=0.0)
    loader = train_loaders(standin.config(folder, sizes), batch_size=22)[0]
    [batch] = loader.batches(0, 1)
    labels = {7: 1, 3: 0, 90: 2}
    drawn = [index for index, _ in (next(loader.candidates(0, place)) for place in range(22))]
    assert sorted(drawn) == [i for i in range(COUNT) if i != 3]
    for row, index in enumerate(drawn):
        height, width = standin.SIZES[index % 6]
        size = rescaled_size(height, width, (192, 192))
        np.testing.assert_array_equal(batch["image_size"][row], size)
        np.testing.assert_array_equal(
            batch["image"][row][: size[0], : size[1]], resize_image(standin.picture(index), size)
        )
        entries = [entry for entry in standin.annotations(index, 1) if not entry.get("iscrowd")][::-1]
        assert batch["valid"][row].tolist() == [place < len(entries) for place in range(5)]
        masks = np.unpackbits(batch["masks"][row], axis=-1)
        for place, entry in enumerate(entries):
            x, y, wide, high = entry["bbox"]
            factor = np.array([size[1] / width, size[0] / height] * 2)
            np.testing.assert_allclose(
                batch["boxes"][row, place], np.array([x, y, x + wide, y + high]) * factor, rtol=1e-6
            )
            assert batch["labels"][row, place] == labels[entry["category_id"]]
            outline = entry["segmentation"]
            whole = bitmap(
                outline["counts"].encode() if isinstance(outline, dict) else (np.array(outline[0]),), (height, width)
            )
            rows = (np.arange(size[0]) * height / size[0]).astype(int)
            columns = (np.arange(size[1]) * width / size[1]).astype(int)
            np.testing.assert_array_equal(masks[place, : size[0], : size[1]], whole[np.ix_(rows, columns)])
            assert masks[place].sum() == whole[np.ix_(rows, columns)].sum()


STOP = 14  # into the third epoch


@pytest.fixture(scope="module")
def reference(folder: pathlib.Path) -> list[str]:
    return train_digests(standin.config(folder, MANY), (0, STOP))


@pytest.mark.parametrize(
    ("changes", "process_count", "start"),
    [
        ({"num_threads": 0}, 1, 0),
        ({"num_threads": 7, "prefetch": 1}, 4, 0),
        ({"num_workers": 2, "num_threads": 1}, 1, 3),
        ({}, 2, 5),
        ({}, 4, 7),
    ],
)
def test_a_batch_depends_on_seed_and_step_only(
    folder: pathlib.Path, reference: list[str], changes: dict[str, int], process_count: int, start: int
) -> None:
    assert len(set(reference)) == STOP
    assert train_digests(standin.config(folder, MANY, **changes), (start, STOP), process_count) == reference[start:]


def test_another_seed_gives_other_batches(folder: pathlib.Path, reference: list[str]) -> None:
    assert not set(train_digests(standin.config(folder, MANY), (0, STOP), seed=4)) & set(reference)


def epoch_of(order: CanvasOrder, number: int, batch_size: int) -> list[list[tuple[int, Change]]]:
    steps = range(number * order.steps_per_epoch, (number + 1) * order.steps_per_epoch)
    return [[next(order.candidates(step, place)) for place in range(batch_size)] for step in steps]


@pytest.mark.parametrize(
    ("wide", "high", "batch_size"), [(70, 30, 8), (64, 16, 16), (3, 90, 16), (50, 0, 16), (9, 9, 16)]
)
def test_every_epoch_shows_every_picture(wide: int, high: int, batch_size: int) -> None:
    """But for a last batch that would be a step more than the pictures need."""
    sizes = np.array([(40, 60)] * wide + [(60, 40)] * high)
    order = CanvasOrder(sizes, SMALL, batch_size, seed=0)
    assert order.steps_per_epoch == -(-len(sizes) // batch_size)
    missing = collections.Counter[int]()
    for number in range(60):
        batches = epoch_of(order, number, batch_size)
        for batch in batches:
            assert len({canvas_size(change.size, (96, 64)) for _, change in batch}) == 1
        shown = collections.Counter(index for batch in batches for index, _ in batch)
        lasts = [count % batch_size for count in (wide, high)]
        assert len(sizes) - len(shown) in ({0} if sum(lasts) > batch_size or not all(lasts) else {*lasts})
        missing.update(set(range(len(sizes))) - set(shown))
    # Nobody is left out for ever.
    assert not missing or max(missing.values()) < 55
    if lasts == [3, 10]:  # the few wide pictures share their last batch's fate with other high ones every time
        assert 30 < max(missing[i] for i in range(3)) < 55


def test_what_is_random_differs_between_epochs() -> None:
    sizes = np.array([(40, 60)] * 40)
    order = CanvasOrder(sizes, dataclasses.replace(MANY, crop_scales=()), 8, seed=0)
    first, second = (dict(pair for batch in epoch_of(order, number, 8) for pair in batch) for number in (0, 1))
    assert sorted(first) == sorted(second) == list(range(40))
    assert list(first) != list(second)
    assert sum(first[i] == second[i] for i in range(40)) < 20  # of six changes


def damage(root: pathlib.Path, **changes: Any) -> DataConfig:
    """Picture 2 is nothing, picture 5 cut off."""
    standin.write(root, COUNT)
    (root / "train/02.png").write_bytes(b"nothing")
    path = root / "train/05.png"
    path.write_bytes(path.read_bytes()[:-40])
    return standin.config(root, **{"max_unreadable": 0.2, **changes})


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_unreadable_pictures_are_replaced_on_their_canvas(tmp_path: pathlib.Path, workers: int) -> None:
    [loader] = train_loaders(damage(tmp_path, num_workers=workers))
    for batch in loader.batches(0, loader.steps_per_epoch):
        assert "unreadable" not in batch
        for size in batch["image_size"].tolist():
            assert canvas_size((size[0], size[1]), (96, 64)) == batch["image"].shape[1:3]
    assert sorted(loader.unreadable.ids.values()) == ["02.png", "05.png"]
    with pytest.raises(TooManyUnreadableError, match=r"of the 23 pictures .* data\.max_unreadable=0\.01"):
        list(train_loaders(damage(tmp_path, max_unreadable=0.01))[0].batches(0, 6))


def eval_loaders(config: DataConfig, batch_size: int, process_count: int = 1) -> list[DetectionEvalLoader]:
    source = open_detection_source(config, "train")
    return [
        DetectionEvalLoader(source, config, batch_size=batch_size, process_index=i, process_count=process_count)
        for i in range(process_count)
    ]


@pytest.mark.parametrize("canvases", [False, True])
@pytest.mark.parametrize(("batch_size", "process_count"), [(1, 1), (4, 2), (32, 4)])
def test_evaluation_shows_every_picture_once_and_whole(
    folder: pathlib.Path, batch_size: int, process_count: int, canvases: bool
) -> None:
    config = standin.config(folder, dataclasses.replace(SMALL, eval_canvases=canvases))
    loaders = eval_loaders(config, batch_size, process_count)
    seen, shapes = [], []
    for parts in zip(*loaders, strict=True):
        batch = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        shape = batch["image"].shape[1:3]
        shapes.append(shape)
        assert batch["mask"].any()
        assert len(batch["mask"]) == batch_size
        for row, (index, mask) in enumerate(zip(batch["index"].tolist(), batch["mask"].tolist(), strict=True)):
            if not mask:
                assert index == -1
                assert not batch["image"][row].any()
                continue
            seen.append(index)
            image = standin.picture(index)
            height, width = rescaled_size(*image.shape[:2], SMALL.eval_scale)
            assert shape == (canvas_size((height, width), SMALL.canvas) if canvases else padded_size((height, width)))
            np.testing.assert_array_equal(batch["image"][row, :height, :width], resize_image(image, (height, width)))
            assert batch["image_size"][row].tolist() == [height, width]
            assert batch["pad_size"][row].tolist() == list(padded_size((height, width)))
            assert batch["original_size"][row].tolist() == list(image.shape[:2])
            factors = np.float32([width / image.shape[1], height / image.shape[0]] * 2)
            np.testing.assert_array_equal(batch["scale_factor"][row], factors)
    assert sorted(seen) == list(range(COUNT))
    assert len(shapes) == len(loaders[0])
    assert list(dict.fromkeys(shapes)) == list(loaders[0].shapes)  # each at one go
    assert shapes == sorted(shapes, key=lambda s: -s[0] * s[1])
    assert sum(loaders[0].shapes.values()) == COUNT
    assert not canvases or len(loaders[0].shapes) == 2


def test_evaluation_leaves_unreadable_pictures_out(tmp_path: pathlib.Path) -> None:
    [loader] = eval_loaders(damage(tmp_path), 4)
    batches = list(loader)
    index = np.concatenate([batch["index"] for batch in batches])
    mask = np.concatenate([batch["mask"] for batch in batches])
    assert sorted(loader.unreadable.ids) == [2, 5]
    assert sorted(index[mask].tolist()) == [i for i in range(COUNT) if i not in (2, 5)]
    assert sorted(index[~mask & (index >= 0)].tolist()) == [2, 5]


@pytest.mark.parametrize("kind", ["train", "eval"])
def test_annotations_of_other_pictures_stop_a_run(tmp_path: pathlib.Path, kind: str) -> None:
    """Before it begins, or where one of many pictures is wrong, when it is read."""
    content = standin.content(4)
    content["images"][1]["height"] = 80
    config = standin.config(standin.write(tmp_path, 4, what=content), dataclasses.replace(SMALL, masks=False))
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] != 99]
    content["annotations"].append({"id": 1000, "image_id": 99, "category_id": 3, "bbox": [1, 1, 9, 9], "area": 81})
    standin.write(tmp_path, 4, what=content)
    with pytest.raises(AnnotationError, match=r"'01\.png' has 40 x 60 pixels .* annotations are of 40 x 80"):
        (train_loaders if kind == "train" else eval_loaders)(config, batch_size=2)  # type: ignore[operator]
    content = standin.content(60)
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] != 99]
    content["annotations"].append({"id": 1000, "image_id": 99, "category_id": 3, "bbox": [1, 1, 9, 9], "area": 81})
    content["images"][1]["height"] = 80
    standin.write(tmp_path, 60, what=content)
    with pytest.raises(AnnotationError, match=r"'01\.png' has 40 x 60 pixels"):
        list(train_loaders(config)[0].batches(0, 15) if kind == "train" else eval_loaders(config, 4)[0])


def test_impossible_loaders(folder: pathlib.Path) -> None:
    config = standin.config(folder)
    with pytest.raises(ValueError, match="22 pictures are fewer than one batch of batch_size=24"):
        train_loaders(config, batch_size=24)
    with pytest.raises(ValueError, match="multiple of the number of processes, 2"):
        eval_loaders(config, 3, process_count=2)
    with pytest.raises(ValueError, match=r"data\.augment, .* are for classification, .*: leave them out"):
        train_loaders(dataclasses.replace(config, augment=AugmentConfig(flip=0.5)))
    with pytest.raises(AnnotationError, match=r"more than data\.detection\.max_boxes=1 boxes"):
        train_loaders(standin.config(folder, dataclasses.replace(SMALL, max_boxes=1)))
