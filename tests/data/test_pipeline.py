import dataclasses
import hashlib
import io
import itertools
import multiprocessing
import threading
import time

import numpy as np
import pytest
from PIL import Image

from rmt_jax.data import (
    AugmentConfig,
    CorruptImageError,
    DataConfig,
    EvalLoader,
    Example,
    ImageSource,
    RandAugmentConfig,
    TokenLabelsConfig,
    TooManyUnreadableError,
    TrainLoader,
)
from rmt_jax.data import open_source as open_split

AUGMENT = AugmentConfig(crop_scale=(0.3, 1.0), flip=0.5, rotate=10.0, translate=0.1, scale=(0.85, 1.15))


class Numbered(ImageSource):
    """Pictures in memory whose label is their position."""

    def __init__(self, count: int) -> None:
        super().__init__("numbered", tuple(map(str, range(count))))
        self._images = []
        for i in range(count):
            data = io.BytesIO()
            Image.new("RGB", (6, 5), (i % 256, i // 256, 200)).save(data, "PNG")
            self._images.append(data.getvalue())

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Example:
        return Example(self._images[index], index, f"number_{index}")


def small(**changes):
    return DataConfig(**{"name": "folder", "image_size": 4, "crop_ratio": 1.0, **changes})


def digits_config(digits_dir, **changes):
    return DataConfig(
        name="digits", dir=digits_dir, eval_split="test", image_size=16, crop_ratio=1.0, augment=AUGMENT, **changes
    )


def digest(batch):
    return hashlib.sha256(batch["image"].tobytes() + batch["label"].tobytes()).hexdigest()


def train_digests(config, steps, process_count=1, seed=3):
    """A hash for every global batch, put together from what the processes yield."""
    source = open_split(config, "train")
    loaders = [
        TrainLoader(source, config, batch_size=64, seed=seed, process_index=p, process_count=process_count)
        for p in range(process_count)
    ]
    parts = zip(*(loader.batches(*steps) for loader in loaders), strict=True)
    return [digest({key: np.concatenate([part[key] for part in step]) for key in step[0]}) for step in parts]


def test_batches_have_the_promised_shapes(digits_dir):
    config = digits_config(digits_dir)
    source = open_split(config, "train")
    loader = TrainLoader(source, config, batch_size=64, seed=0, process_index=1, process_count=2)
    assert loader.steps_per_epoch == 1437 // 64
    batch = next(loader.batches(0, 1))
    assert {key: (value.shape, value.dtype) for key, value in batch.items()} == {
        "image": ((32, 16, 16, 3), np.uint8),
        "label": ((32,), np.int32),
    }


STOP = 25  # past the first epoch, which has 22 steps


@pytest.fixture(scope="module")
def reference(digits_dir):
    return train_digests(digits_config(digits_dir), (0, STOP))


@pytest.mark.parametrize(
    ("changes", "process_count", "start"),
    [
        ({"num_threads": 0}, 1, 0),
        ({"num_threads": 7, "prefetch": 1}, 1, 0),
        ({"num_workers": 2, "num_threads": 1}, 1, 0),
        ({"num_workers": 3, "num_threads": 0}, 1, 19),
        ({}, 2, 0),
        ({}, 4, 0),
        ({}, 1, 5),
        ({}, 4, 23),
    ],
)
def test_a_batch_depends_on_seed_and_step_only(digits_dir, reference, changes, process_count, start):
    assert len(set(reference)) == STOP
    assert train_digests(digits_config(digits_dir, **changes), (start, STOP), process_count) == reference[start:]


def test_another_seed_gives_other_batches(digits_dir):
    config = digits_config(digits_dir)
    runs = [train_digests(config, (0, 23), seed=seed) for seed in (0, 1, 2)]
    assert len(set(itertools.chain(*runs))) == 3 * 23


def epochs(seed, count=50, batch_size=8, number=3):
    loader = TrainLoader(Numbered(count), small(), batch_size=batch_size, seed=seed)
    batches = list(loader.batches(0, number * loader.steps_per_epoch))
    labels = np.concatenate([batch["label"] for batch in batches])
    pixels = np.concatenate([batch["image"] for batch in batches])
    assert (pixels == np.stack([labels % 256, labels // 256, labels * 0 + 200], -1)[:, None, None]).all()
    return labels.reshape(number, -1).tolist()


def test_an_epoch_visits_every_picture_at_most_once_in_a_fresh_order():
    first, second, third = epochs(seed=0)
    for epoch in (first, second, third):
        assert len(epoch) == 48
        assert len(set(epoch)) == 48
        assert epoch != sorted(epoch)
    assert first != second != third
    # The two left out are not the same for ever.
    assert len(set(first) & set(second) & set(third)) < 48


def test_a_divisible_epoch_is_a_permutation():
    assert all(sorted(epoch) == list(range(48)) for epoch in epochs(seed=0, count=48))


def test_neighbouring_seeds_do_not_share_epochs():
    runs = [tuple(epoch) for seed in range(5) for epoch in epochs(seed, count=16)]
    assert len(set(runs)) == 15


@pytest.mark.parametrize("count", [1, 7, 8, 9, 33])
@pytest.mark.parametrize(("batch_size", "process_count"), [(8, 1), (8, 2), (8, 4), (4, 4), (64, 2)])
def test_evaluation_counts_every_picture_once(count, batch_size, process_count):
    source = Numbered(count)
    loaders = [
        EvalLoader(source, small(), batch_size=batch_size, process_index=p, process_count=process_count)
        for p in range(process_count)
    ]
    runs = [list(loader) for loader in loaders]
    assert {len(run) for run in runs} == {len(loader) for loader in loaders} == {-(-count // batch_size)}
    batches = [
        {key: np.concatenate([part[key] for part in step]) for key in step[0]} for step in zip(*runs, strict=True)
    ]
    for batch in batches:
        assert batch["image"].shape == (batch_size, 4, 4, 3)
        assert {key: value.dtype for key, value in batch.items()} == {
            "image": np.uint8,
            "label": np.int32,
            "mask": np.bool_,
            "index": np.int32,
        }
    everything = {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}
    mask = everything["mask"]
    np.testing.assert_array_equal(everything["index"][mask], np.arange(count))
    np.testing.assert_array_equal(everything["label"][mask], np.arange(count))
    np.testing.assert_array_equal(everything["image"][mask][:, 0, 0, 2], 200)
    assert (everything["index"][~mask] == -1).all()
    assert not everything["image"][~mask].any()


def test_evaluation_can_be_repeated_and_does_not_augment(digits_dir):
    config = digits_config(digits_dir, num_workers=2, num_threads=1)
    source = open_split(config, "test")
    plain = EvalLoader(source, digits_config(digits_dir), batch_size=100)
    first = [digest(batch) for batch in plain]
    assert first == [digest(batch) for batch in plain]
    assert first == [digest(batch) for batch in EvalLoader(source, config, batch_size=100)]


def _settled(before):
    """Whether all threads and processes beyond `before` are gone, after some patience."""
    for _ in range(100):
        left = [t for t in threading.enumerate() if t not in before and t.name.startswith("grain-prefetch")]
        if not left and not multiprocessing.active_children():
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("workers", [0, 2])
def test_stopping_early_leaves_nothing_running(digits_dir, workers):
    config = digits_config(digits_dir, num_workers=workers, num_threads=2)
    loader = TrainLoader(open_split(config, "train"), config, batch_size=16, seed=0)
    before = threading.enumerate()
    batches = loader.batches(0, 10**9)
    next(batches)
    start = time.monotonic()
    batches.close()
    assert _settled(before)
    assert time.monotonic() - start < 20
    with pytest.raises(StopIteration):
        next(batches)


def damaged_folder(root, count=12):
    """Pictures of two classes, of which number 3 is cut off and number 8 is no picture."""
    for i in range(count):
        path = root / "train" / f"class_{i % 2}" / f"{i:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), (20 * i, 0, 0)).save(path)
    cut = root / "train/class_1/03.jpg"
    cut.write_bytes(cut.read_bytes()[:-200])
    (root / "train/class_0/08.jpg").write_bytes(b"\xff\xd8\xff\xe0 this is no picture")
    return small(dir=str(root), max_unreadable=0.2)


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_pictures_are_replaced_named_and_counted_once(tmp_path, workers, caplog):
    config = dataclasses.replace(damaged_folder(tmp_path), num_workers=workers)
    source = open_split(config, "train")
    loader = TrainLoader(source, config, batch_size=12, seed=0)
    with caplog.at_level("WARNING"):
        batches = list(loader.batches(0, 3))
    # Each is replaced by the next of its data set: 03 by 05, and 08 by 10.
    reds = np.sort(np.concatenate([batch["image"][:, 0, 0, 0] for batch in batches]))
    expected = np.repeat([0, 20, 40, 80, 100, 100, 120, 140, 180, 200, 200, 220], 3)
    np.testing.assert_allclose(reds, expected, atol=3)
    assert sorted(loader.unreadable.ids.values()) == ["class_0/08.jpg", "class_1/03.jpg"]
    named = [record.getMessage() for record in caplog.records]
    assert [sum(name in line for line in named) for name in ("class_1/03.jpg", "class_0/08.jpg")] == [1, 1]
    assert all(set(batch) == {"image", "label"} for batch in batches)
    again = list(TrainLoader(source, damaged_folder(tmp_path), batch_size=12, seed=0).batches(0, 3))
    assert list(map(digest, again)) == list(map(digest, batches))


@pytest.mark.parametrize("loader", ["train", "eval"])
def test_too_many_unreadable_pictures_stop_the_run(tmp_path, loader):
    config = dataclasses.replace(damaged_folder(tmp_path), max_unreadable=0.1)
    source = open_split(config, "train")
    batches = (
        TrainLoader(source, config, batch_size=12, seed=0).batches(0, 1)
        if loader == "train"
        else iter(EvalLoader(source, config, batch_size=12))
    )
    with pytest.raises(TooManyUnreadableError, match=r"2 of the 12 pictures .* data\.max_unreadable=0\.1 .*08\.jpg"):
        list(batches)


def test_evaluation_leaves_unreadable_pictures_out(tmp_path):
    config = damaged_folder(tmp_path)
    source = open_split(config, "train")
    loader = EvalLoader(source, config, batch_size=8)
    batches = list(loader)
    index = np.concatenate([batch["index"] for batch in batches])
    mask = np.concatenate([batch["mask"] for batch in batches])
    np.testing.assert_array_equal(index[:12], np.arange(12))
    left_out = [source[i].id for i in index[:12][~mask[:12]].tolist()]
    assert left_out == list(loader.unreadable.ids.values()) == ["class_0/08.jpg", "class_1/03.jpg"]
    assert not np.concatenate([batch["image"] for batch in batches])[:12][~mask[:12]].any()


def test_nothing_but_unreadable_pictures_is_an_error(tmp_path):
    (tmp_path / "train/a").mkdir(parents=True)
    for name in "xy":
        (tmp_path / f"train/a/{name}.jpg").write_bytes(b"nothing")
    config = small(dir=str(tmp_path), max_unreadable=0.99)
    with pytest.raises(CorruptImageError, match="cannot decode the picture of record 'a/"):
        list(TrainLoader(open_split(config, "train"), config, batch_size=1, seed=0).batches(0, 1))


def test_no_steps_is_an_empty_run():
    loader = TrainLoader(Numbered(8), small(), batch_size=4, seed=0)
    assert list(loader.batches(3, 3)) == []
    assert len(list(loader.batches(3, 5))) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"batch_size": 9},
            "numbered: 8 pictures are fewer than one batch of batch_size=9: choose .* at most 8",
        ),
        ({"batch_size": 7, "process_count": 2}, "positive multiple of the number of processes, 2: try 8"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"process_index": 2, "process_count": 2}, "process_index=2: expected 0 <= process_index < process_count=2"),
        ({"seed": -1}, "seed=-1: expected 0 <= seed"),
    ],
)
def test_impossible_loaders(changes, message):
    with pytest.raises(ValueError, match=message):
        TrainLoader(Numbered(8), small(), **{"batch_size": 4, "seed": 0, **changes})


def test_impossible_evaluation_and_steps():
    with pytest.raises(ValueError, match="positive multiple"):
        EvalLoader(Numbered(8), small(), batch_size=3, process_count=2)
    loader = TrainLoader(Numbered(8), small(), batch_size=4, seed=0)
    # Raised by the call, before anything is iterated.
    with pytest.raises(ValueError, match="expected 0 <= start_step <= stop_step"):
        loader.batches(5, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": ""}, r"data\.name is empty"),
        ({"eval_split": ""}, r"data\.eval_split is empty"),
        ({"image_size": 0}, r"data\.image_size=0: expected a number of pixels"),
        ({"crop_ratio": 1.5}, r"data\.crop_ratio=1\.5: expected 0 < crop_ratio <= 1"),
        ({"interpolation": "cubic"}, "'cubic': expected one of bilinear, bicubic"),
        ({"std": (0.2, 0.0, 0.2)}, "three positive numbers"),
        ({"num_workers": -1}, r"data\.num_workers=-1: expected 0 or more"),
        ({"prefetch": 0}, r"data\.prefetch=0: expected 1 or more"),
        ({"repeats": 0}, r"data\.repeats=0: expected 1 or more"),
        ({"max_unreadable": 1.0}, r"data\.max_unreadable=1\.0: expected a share"),
        ({"token_labels": TokenLabelsConfig("maps")}, "makes a pipeline of its own"),
    ],
)
def test_impossible_data_configurations(changes, message):
    with pytest.raises(ValueError, match=message):
        small(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop_scale": (0.0, 1.0)}, r"augment\.crop_scale=\(0\.0, 1\.0\): expected"),
        ({"crop_scale": (0.5, 0.1)}, "smallest <= largest"),
        ({"crop_aspect": (2.0, 1.0)}, r"augment\.crop_aspect=\(2\.0, 1\.0\)"),
        ({"scale": (0.0, 1.0)}, r"augment\.scale=\(0\.0, 1\.0\)"),
        ({"flip": 1.5}, r"augment\.flip=1\.5: expected a probability"),
        ({"rotate": 181.0}, r"augment\.rotate=181\.0: expected degrees"),
        ({"color_jitter": -1.0}, r"augment\.color_jitter=-1\.0"),
        ({"rand_augment": RandAugmentConfig(num_ops=2), "three_augment": True}, "rand_augment excludes three_augment"),
        ({"translate": 10.0}, r"augment\.translate=10\.0: expected a fraction of the side"),
    ],
)
def test_impossible_augmentations(changes, message):
    with pytest.raises(ValueError, match=message):
        AugmentConfig(**changes)
