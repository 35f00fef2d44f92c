"""Crops to train on and whole pictures to evaluate: the same whatever the processes, threads and first step."""

import collections
import dataclasses
import hashlib
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from rmt_jax.data import AugmentConfig, DataConfig, TooManyUnreadableError
from rmt_jax.data.resize import rescaled_size, resize_image
from rmt_jax.data.segmentation import (
    LabelMapError,
    SegmentationEvalLoader,
    SegmentationTrainLoader,
    open_segmentation_source,
)
from tests.data.segmentation import standin
from tests.data.segmentation.standin import CLASSES, SMALL, encode

COUNT, BATCH = 23, 8


def write(root: pathlib.Path, count: int = COUNT) -> pathlib.Path:
    standin.write(root, "train", count)
    (root / "classes.txt").write_text("\n".join(CLASSES))
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Not to be changed."""
    return write(tmp_path_factory.mktemp("folder"))


def digest(batch: dict[str, np.ndarray]) -> str:
    return hashlib.sha256(b"".join(batch[key].tobytes() for key in sorted(batch))).hexdigest()


def train_loaders(config: DataConfig, process_count: int = 1, **changes: int) -> list[SegmentationTrainLoader]:
    source = open_segmentation_source(config, "train")
    return [
        SegmentationTrainLoader(
            source,
            config,
            **{"batch_size": BATCH, "seed": 3, **changes},
            process_index=process,
            process_count=process_count,
        )
        for process in range(process_count)
    ]


def train_digests(config: DataConfig, steps: tuple[int, int], process_count: int = 1, **changes: int) -> list[str]:
    """A hash for every global batch, put together from what the processes yield."""
    loaders = train_loaders(config, process_count, **changes)
    parts = zip(*(loader.batches(*steps) for loader in loaders), strict=True)
    return [digest({key: np.concatenate([part[key] for part in step]) for key in step[0]}) for step in parts]


def test_batches_have_the_promised_shapes(folder: pathlib.Path) -> None:
    loader = train_loaders(standin.config(folder), 2)[1]
    assert loader.steps_per_epoch == COUNT // BATCH
    batch = next(loader.batches(0, 1))
    assert {key: (value.shape, value.dtype) for key, value in batch.items()} == {
        "image": ((4, 32, 40, 3), np.uint8),
        "label": ((4, 32, 40), np.uint8),
        "picture_size": ((4, 2), np.int32),
    }


STOP = 7  # past the third epoch


@pytest.fixture(scope="module")
def reference(folder: pathlib.Path) -> list[str]:
    return train_digests(standin.config(folder), (0, STOP))


@pytest.mark.parametrize(
    ("changes", "process_count", "start"),
    [
        ({"num_threads": 0}, 1, 0),
        ({"num_threads": 7, "prefetch": 1}, 4, 0),
        ({"num_workers": 2, "num_threads": 1}, 1, 3),
        ({}, 2, 0),
        ({}, 8, 5),
    ],
)
def test_a_batch_depends_on_seed_and_step_only(
    folder: pathlib.Path, reference: list[str], changes: dict[str, int], process_count: int, start: int
) -> None:
    assert len(set(reference)) == STOP
    assert train_digests(standin.config(folder, **changes), (start, STOP), process_count) == reference[start:]


def test_another_seed_gives_other_batches(folder: pathlib.Path, reference: list[str]) -> None:
    assert not set(train_digests(standin.config(folder), (0, STOP), seed=4)) & set(reference)


def test_an_epoch_shows_every_picture_once(folder: pathlib.Path) -> None:
    """Each picture is told by its label map, which nothing random has changed."""
    plain = dataclasses.replace(SMALL, scale=(80, 80), ratio_range=(1.0, 1.0), crop_size=(80, 80), flip=0.0)
    loader = train_loaders(standin.config(folder, plain), batch_size=COUNT)[0]
    batch = next(loader.batches(0, 1))
    shown = [
        labels[:height, :width].tobytes()
        for labels, (height, width) in zip(batch["label"], batch["picture_size"], strict=True)
    ]
    assert len(set(shown)) == COUNT


def eval_loaders(config: DataConfig, batch_size: int, process_count: int = 1) -> list[SegmentationEvalLoader]:
    source = open_segmentation_source(config, "train")
    return [
        SegmentationEvalLoader(source, config, batch_size=batch_size, process_index=i, process_count=process_count)
        for i in range(process_count)
    ]


def together(parts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The global batch of what the processes yield."""
    parts = list(parts)
    assert len({part["image"].shape for part in parts}) == 1
    return {
        key: [labels for part in parts for labels in part[key]]
        if key == "label"
        else np.concatenate([part[key] for part in parts])
        for key in parts[0]
    }


@pytest.mark.parametrize(("batch_size", "process_count"), [(1, 1), (4, 1), (4, 2), (8, 8), (32, 4)])
def test_evaluation_shows_every_picture_once_and_whole(
    folder: pathlib.Path, batch_size: int, process_count: int
) -> None:
    loaders = eval_loaders(standin.config(folder), batch_size, process_count)
    runs = [list(loader) for loader in loaders]
    assert {len(run) for run in runs} == {len(loader) for loader in loaders}
    batches = [together(step) for step in zip(*runs, strict=True)]
    seen = []
    for batch in batches:
        shape = batch["image"].shape
        assert shape[0] == batch_size == len(batch["label"])
        assert {key: batch[key].dtype for key in batch if key != "label"} == {
            "image": np.uint8,
            "original_size": np.int32,
            "mask": np.bool_,
            "index": np.int32,
        }
        assert batch["mask"].any()
        for i, (index, mask) in enumerate(zip(batch["index"].tolist(), batch["mask"].tolist(), strict=True)):
            assert tuple(batch["original_size"][i]) == batch["label"][i].shape
            if not mask:
                assert index == -1
                assert batch["label"][i].shape == shape[1:3]
                assert (batch["label"][i] == 255).all()
                assert not batch["image"][i].any()
                continue
            image, labels = standin.example(index)
            np.testing.assert_array_equal(batch["label"][i], labels)
            np.testing.assert_array_equal(
                batch["image"][i], resize_image(image, rescaled_size(*labels.shape, SMALL.scale))
            )
            seen.append(index)
    assert sorted(seen) == list(range(COUNT))
    # Few shapes, each at one go, the largest first.
    shapes = [batch["image"].shape[1:3] for batch in batches]
    assert [(shape,) for shape in dict.fromkeys(shapes)] == list(loaders[0].shapes)
    assert shapes == sorted(shapes, key=lambda s: -s[0] * s[1])
    assert sum(loaders[0].shapes.values()) == COUNT
    sizes = collections.Counter((rescaled_size(*standin.example(i)[1].shape, SMALL.scale),) for i in range(COUNT))
    assert loaders[0].shapes == sizes


def test_evaluation_at_several_scales(folder: pathlib.Path) -> None:
    segmentation = dataclasses.replace(SMALL, eval_ratios=(1.0, 0.5))
    [loader] = eval_loaders(standin.config(folder, segmentation=segmentation), 4)
    longest, shortest = SMALL.scale
    for batch in loader:
        for i in np.flatnonzero(batch["mask"]):
            image, labels = standin.example(int(batch["index"][i]))
            size = rescaled_size(*labels.shape, (longest // 2, shortest // 2))
            np.testing.assert_array_equal(batch["image_1"][i], resize_image(image, size))
    assert sum(loader.shapes.values()) == COUNT
    assert all(len(shapes) == 2 for shapes in loader.shapes)


def test_evaluation_is_the_same_with_worker_processes(folder: pathlib.Path) -> None:
    [plain], [workers] = (
        eval_loaders(standin.config(folder, **changes), 4) for changes in ({}, {"num_workers": 1, "num_threads": 1})
    )
    for one, other in zip(plain, workers, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            for ours, theirs in zip(one[key], other[key], strict=True):
                np.testing.assert_array_equal(ours, theirs)


def damage(root: pathlib.Path) -> DataConfig:
    """Picture 2 without a header, picture 5 and label map 8 cut off."""
    (root / "images/train/02.png").write_bytes(b"nothing")
    for path in (root / "images/train/05.png", root / "labels/train/08.png"):
        path.write_bytes(path.read_bytes()[:-40])
    return standin.config(root, max_unreadable=0.2)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_unreadable_pictures_are_replaced_and_counted(tmp_path: pathlib.Path, workers: int) -> None:
    config = dataclasses.replace(damage(write(tmp_path)), num_workers=workers)
    [loader] = train_loaders(config, batch_size=COUNT)
    [batch] = loader.batches(0, 1)
    assert set(batch) == {"image", "label", "picture_size"}
    assert sorted(loader.unreadable.ids.values()) == ["02.png", "05.png", "08.png"]


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_evaluation_leaves_unreadable_pictures_out(tmp_path: pathlib.Path, workers: int) -> None:
    config = dataclasses.replace(damage(write(tmp_path)), num_workers=workers)
    [loader] = eval_loaders(config, 4)
    assert list(loader.unreadable.ids) == [2]  # the others have a header
    batches = list(loader)
    index = np.concatenate([batch["index"] for batch in batches])
    mask = np.concatenate([batch["mask"] for batch in batches])
    assert sorted(loader.unreadable.ids.values()) == ["02.png", "05.png", "08.png"]
    assert sorted(index[mask].tolist()) == [i for i in range(COUNT) if i not in (2, 5, 8)]
    assert sorted(index[~mask & (index >= 0)].tolist()) == [5, 8]


def test_too_many_unreadable_pictures_stop_the_run(tmp_path: pathlib.Path) -> None:
    config = dataclasses.replace(damage(write(tmp_path)), max_unreadable=0.1)
    with pytest.raises(TooManyUnreadableError, match=r"3 of the 23 pictures .* data\.max_unreadable=0\.1"):
        list(train_loaders(config, batch_size=COUNT)[0].batches(0, 1))
    with pytest.raises(TooManyUnreadableError, match=r"1 of the 23 pictures .*: 02\.png"):
        eval_loaders(dataclasses.replace(config, max_unreadable=0.0), 4)


@pytest.mark.parametrize("kind", ["train", "eval"])
def test_wrong_label_maps_are_found_before_training(tmp_path: pathlib.Path, kind: str) -> None:
    write(tmp_path, 4)
    make = train_loaders if kind == "train" else eval_loaders
    path = tmp_path / "labels/train/01.png"
    _, labels = standin.example(1)
    for data, message in (
        (encode(np.full_like(labels, 3)), r"'01\.png' holds label 3: .*reduce_zero_label=True"),
        (encode(labels[:-1]), r"'01\.png' has 40 x 60 pixels .* its label map 40 x 59"),
        (encode(np.stack([labels] * 3, -1)), r"'01\.png' is a PNG in 8-bit RGB"),
    ):
        path.write_bytes(data)
        with pytest.raises(LabelMapError, match=message):
            make(standin.config(tmp_path), batch_size=4)


@pytest.mark.parametrize("kind", ["train", "eval"])
def test_every_label_map_is_checked_when_it_is_read(tmp_path: pathlib.Path, kind: str) -> None:
    """Number 1 is not among the few that are tried before: one wrong map of a thousand is enough to stop."""
    write(tmp_path, 40)
    (tmp_path / "labels/train/01.png").write_bytes(encode(np.full_like(standin.example(1)[1], 7)))
    config = standin.config(tmp_path, max_unreadable=0.9)
    batches = (
        train_loaders(config, batch_size=40)[0].batches(0, 1) if kind == "train" else iter(eval_loaders(config, 8)[0])
    )
    with pytest.raises(LabelMapError, match=r"'01\.png' holds label 7: expected 0 \.\. 2, or 255"):
        list(batches)


def test_impossible_loaders(folder: pathlib.Path) -> None:
    config = standin.config(folder)
    with pytest.raises(ValueError, match="23 pictures are fewer than one batch of batch_size=24"):
        train_loaders(config, batch_size=24)
    with pytest.raises(ValueError, match="multiple of the number of processes, 2"):
        eval_loaders(config, 3, process_count=2)
    with pytest.raises(ValueError, match=r"data\.augment, .* are for classification, .*: leave them out"):
        train_loaders(dataclasses.replace(config, augment=AugmentConfig(flip=0.5)))
