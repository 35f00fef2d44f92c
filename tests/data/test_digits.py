import hashlib
import logging
import multiprocessing
import os

import numpy as np
import pytest
from sklearn.datasets import load_digits

from rmt_jax.data import DataConfig, decode, open_source, prepare_digits
from rmt_jax.data.digits import split_indices


def _files(directory):
    return {
        os.path.join(folder, file): os.stat(os.path.join(folder, file)).st_mtime_ns
        for folder, _, files in os.walk(directory)
        for file in files
    }


@pytest.mark.parametrize(("split", "size"), [("train", 1437), ("test", 360)])
def test_records_are_the_pictures_of_sklearn(digits_dir, split, size):
    digits = load_digits()
    source = open_source(DataConfig(name="digits", dir=digits_dir), split)
    assert len(source) == size
    assert source.class_names == tuple("0123456789")
    for example in (source[i] for i in range(len(source))):
        index = int(example.id.removeprefix("digit_"))
        assert example.label == digits.target[index]
        pixels = np.asarray(decode(example.image, example.id))
        assert pixels.shape == (8, 8, 3)
        np.testing.assert_allclose(pixels, (digits.images[index] * 255 / 16)[..., None].repeat(3, -1), atol=0.5)


def test_the_split_is_stratified_complete_and_never_changes():
    labels = load_digits().target
    train, test = split_indices(labels)
    np.testing.assert_array_equal(np.sort(np.concatenate([train, test])), np.arange(1797))
    np.testing.assert_array_equal(np.bincount(labels[test]), [36] * 10)
    # Published accuracies depend on this: if it fails, the split has changed and the version must too.
    assert hashlib.sha256(test.astype("<i4").tobytes()).hexdigest()[:16] == "9b1be8ed46b83fe9"


def test_both_splits_together_are_every_picture_once(digits_dir):
    config = DataConfig(name="digits", dir=digits_dir)
    sources = [open_source(config, split) for split in ("train", "test")]
    ids = [source[i].id for source in sources for i in range(len(source))]
    assert sorted(ids) == [f"digit_{i:04d}" for i in range(1797)]


def test_prepared_once_quietly_and_then_reused(tmp_path, capfd, caplog):
    with caplog.at_level(logging.INFO, logger="rmt_jax"):
        prepare_digits(str(tmp_path))
    assert [record.message for record in caplog.records if record.name.startswith("rmt_jax")] == [
        f"prepared the digits data set in {tmp_path}/digits/1.0.0"
    ]
    assert capfd.readouterr() == ("", "")
    before = _files(tmp_path)
    assert any("array_record" in file for file in before)
    builder = prepare_digits(str(tmp_path))
    assert builder.info.splits["train"].num_examples == 1437
    assert _files(tmp_path) == before


def _prepare(directory, barrier, queue):
    barrier.wait()
    source = open_source(DataConfig(name="digits", dir=directory), "test")
    queue.put((len(source), source[0].id))


def test_two_processes_prepare_at_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier, queue = context.Barrier(2), context.Queue()
    processes = [context.Process(target=_prepare, args=(str(tmp_path), barrier, queue)) for _ in range(2)]
    for process in processes:
        process.start()
    results = [queue.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert results[0] == results[1] == (360, results[0][1])
    assert os.listdir(tmp_path / "digits") == ["1.0.0"]  # nothing half-written is left behind


def test_another_process_finishing_first_is_no_error_but_a_full_disk_is(tmp_path, monkeypatch):
    from rmt_jax.data.digits import Digits

    prepare = Digits.download_and_prepare

    def lose_the_race(builder, **kwargs):
        prepare(Digits(data_dir=str(tmp_path), file_format="array_record"), **kwargs)
        raise OSError("Directory not empty")

    monkeypatch.setattr(Digits, "download_and_prepare", lose_the_race)
    assert prepare_digits(str(tmp_path)).info.splits["test"].num_examples == 360

    def fail(builder, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(Digits, "download_and_prepare", fail)
    with pytest.raises(OSError, match="No space left"):
        prepare_digits(str(tmp_path / "elsewhere"))
