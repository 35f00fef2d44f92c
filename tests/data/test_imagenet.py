"""`rmt data imagenet`: ImageNet's two tars to a TFDS data set."""

import fcntl
import io
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.utils.shard_utils import ShardConfig, get_shard_boundaries

from rmt_jax.cli import main
from rmt_jax.data import CorruptImageError, DataConfig, decode, imagenet_shards, imagenet_writer, open_source
from rmt_jax.data.imagenet import TRAIN_TAR, VALIDATION_TAR
from rmt_jax.data.imagenet_shards import Progress, as_rgb_jpeg
from rmt_jax.data.imagenet_writer import prepare_imagenet
from tests import standin as forms

SMALL_SHARDS = 2**18


class Lines(Progress):
    def __init__(self):
        self.lines, self.steps = [], []

    def say(self, line):
        self.lines.append(line)

    def advance(self, done, total):
        self.steps.append((done, total))


@pytest.fixture
def tars(standin, tmp_path):
    """The stand-in's tars, to be changed at will."""
    return pathlib.Path(shutil.copytree(standin[0] / "tars", tmp_path / "tars"))


def records(data_dir, split):
    source = open_source(DataConfig("imagenet2012", dir=str(data_dir)), split)
    return [(e.id, source.class_names[e.label], e.image) for e in (source[i] for i in range(len(source)))]


def test_pictures_are_kept_but_for_odd_ones(standin):
    directory, pictures = standin
    for split, folder in (("train", "train"), ("validation", "val")):
        found = {(synset, name): image for name, synset, image in records(directory / "tfds", split)}
        given = {(synset, name): data for synset, files in pictures[folder].items() for name, data in files.items()}
        assert found.keys() == given.keys()
        changed = sorted(name for (synset, name), image in found.items() if image != given[synset, name])
        odd = [f"n02124075_{10 * oddity}.JPEG" for oddity in (forms.CMYK, forms.PNG)]
        assert changed == (odd if split == "train" else [])


def test_odd_pictures_become_rgb_jpegs(standin):
    first = standin[1]["train"]["n02124075"]
    for oddity, reason in ((forms.CMYK, "CMYK pictures became RGB"), (forms.PNG, "PNG became JPEG")):
        before = first[f"n02124075_{10 * oddity}.JPEG"]
        after, said = as_rgb_jpeg(before)
        assert said == reason
        image = Image.open(io.BytesIO(after))
        assert (image.format, image.mode) == ("JPEG", "RGB")
        difference = np.abs(np.asarray(image, np.int32) - np.asarray(decode(before, "x"), np.int32))
        assert difference.mean() < 2  # of 255: quality 100, halved chroma
    for oddity in (forms.GREY, forms.ROTATED, forms.TRUNCATED):
        before = first[f"n02124075_{10 * oddity}.JPEG"]
        assert as_rgb_jpeg(before) == (before, "")


def test_truncated_pictures_are_kept_and_named_where_they_would_be_changed(standin):
    cmyk = standin[1]["train"]["n02124075"]["n02124075_0.JPEG"]
    for broken in (cmyk[: len(cmyk) // 2], b"no picture", b""):
        with pytest.raises(CorruptImageError):
            decode(broken, "x")
        assert as_rgb_jpeg(broken) == (broken, "pictures cannot be read and are stored as they are")


class Reference(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Written by TFDS's own machinery, with the features and keys of its imagenet2012."""

    VERSION = tfds.core.Version("5.1.0")
    code_path = None
    name = "imagenet2012"
    pictures: dict[str, forms.Pictures]

    def _info(self):
        features = tfds.builder("imagenet2012").info.features
        return tfds.core.DatasetInfo(builder=self, features=features, supervised_keys=("image", "label"))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples("train"), "validation": self._generate_examples("val")}

    def _generate_examples(self, split):
        for synset, files in self.pictures[split].items():
            for name, data in files.items():
                yield name, {"image": io.BytesIO(as_rgb_jpeg(data)[0]), "label": synset, "file_name": name}


def test_order_and_files_are_tfdss_own(standin, tmp_path):
    Reference.pictures = standin[1]
    Reference(data_dir=str(tmp_path), file_format="array_record").download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False)
    )
    for split in ("train", "validation", "train[:30%]"):
        assert records(standin[0] / "tfds", split) == records(tmp_path, split)
    ours, theirs = (
        {file.name for file in (d / "imagenet2012/5.1.0").iterdir()} for d in (standin[0] / "tfds", tmp_path)
    )
    assert ours == theirs
    builder = tfds.builder("imagenet2012", data_dir=str(standin[0] / "tfds"))
    assert {name: info.num_examples for name, info in builder.info.splits.items()} == {"train": 48, "validation": 24}
    assert builder.info.features["label"].num_classes == 1000


def test_number_of_files_is_tfdss_own():
    class Sizes:
        def __init__(self, count, size):
            self.count, self.size = count, lambda index: size

        def __len__(self):
            return self.count

        def id(self, index):
            return f"{index}"

    for count, size in ((3, 10), (5000, 40_000), (5000, 115_000), (2000, 40_000_000)):
        shards = imagenet_shards.split_into_shards("train", Sizes(count, size), pathlib.Path())
        expected = ShardConfig.calculate_number_shards(count * size, count)
        assert np.cumsum([len(s.pictures) for s in shards]).tolist() == list(get_shard_boundaries(count, expected))
        assert shards[-1].path.name == f"imagenet2012-train.array_record-{expected - 1:05d}-of-{expected:05d}"


DRIVER = """
import os, signal, sys, threading
from rmt_jax.data import imagenet_shards, tars
from rmt_jax.data.imagenet_writer import prepare_imagenet
imagenet_shards._MIN_SHARD_BYTES, imagenet_shards._THREADS = {small}, 1
read, calls = tars.TarSource.__getitem__, []
def reading(self, index):
    calls.append(index)
    if len(calls) == 40:
        os.kill(os.getpid(), signal.SIGKILL)
    return read(self, index)
tars.TarSource.__getitem__ = reading
prepare_imagenet(sys.argv[1], sys.argv[2], progress=imagenet_shards.Progress())
"""


def test_killed_and_run_again(standin, tars, tmp_path, monkeypatch):
    command = [sys.executable, "-c", DRIVER.format(small=SMALL_SHARDS), str(tars), str(tmp_path / "tfds")]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    folder = tmp_path / "tfds/imagenet2012"
    with pytest.raises(FileNotFoundError, match=r"not prepared.*its preparation was interrupted"):
        open_source(DataConfig("imagenet2012", dir=str(tmp_path / "tfds")), "train")
    files = sorted((folder / "incomplete.5.1.0").iterdir())
    complete = {file.name: file.stat().st_mtime_ns for file in files if file.suffix != ".tmp"}
    assert 0 < len(complete) < len(files)  # one was half written
    monkeypatch.setattr(imagenet_shards, "_MIN_SHARD_BYTES", SMALL_SHARDS)
    progress = Lines()
    final = prepare_imagenet(str(tars), str(tmp_path / "tfds"), progress=progress)
    assert any(line.startswith("going on with an interrupted preparation") for line in progress.lines)
    assert progress.steps[0][0] > 0
    assert progress.steps[-1] == (72, 72)
    assert {name: (final / name).stat().st_mtime_ns for name in complete} == complete
    assert [path.name for path in folder.iterdir()] == ["5.1.0"]
    assert not list(final.glob("*.tmp"))
    for split in ("train", "validation"):
        assert records(tmp_path / "tfds", split) == records(standin[0] / "tfds", split)


def test_files_of_other_tars_are_not_used(tars, tmp_path, monkeypatch):
    write = imagenet_writer._write_info
    monkeypatch.setattr(imagenet_writer, "_write_info", lambda *words: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        prepare_imagenet(str(tars), str(tmp_path / "tfds"), progress=Progress())
    monkeypatch.setattr(imagenet_writer, "_write_info", write)
    path = tars / VALIDATION_TAR
    name = "ILSVRC2012_val_00000001.JPEG"
    path.write_bytes(forms.tar_bytes({name: forms.encode(Image.new("RGB", (9, 9)))}))
    progress = Lines()
    prepare_imagenet(str(tars), str(tmp_path / "tfds"), progress=progress)
    assert "other tars than those of the interrupted preparation: starting again" in progress.lines
    assert [record[:2] for record in records(tmp_path / "tfds", "validation")] == [(name, "n01751748")]


def test_the_command(tars, tmp_path, capsys):
    words = ["data", "imagenet", "--tars", str(tars), "--data-dir", str(tmp_path / "tfds")]
    assert main([*words, "--only", "validation"]) == 0
    stdout, out = capsys.readouterr()
    assert stdout == ""  # which is for results, and this one is a folder
    assert "24 pictures of 8 classes. This is not the whole of ImageNet's 50,000 pictures" in out
    assert "GB are free" in out
    assert out.endswith("imagenet2012/5.1.0 (validation: 24 pictures)\n")
    assert main([*words, "--only", "validation"]) == 0
    assert capsys.readouterr().err.startswith("already prepared: ")
    assert main([*words, "--only", "validation", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert main(words) == 2
    assert "is prepared without the split train" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "tfds/imagenet2012/5.1.0")
    assert main(words) == 0
    assert "1 CMYK pictures became RGB: n02124075/n02124075_0.JPEG\n" in capsys.readouterr().err


def test_missing_and_damaged_tars(tars, tmp_path):
    def refused(error, match):
        with pytest.raises(error, match=match):
            prepare_imagenet(str(tars), str(tmp_path / "tfds"), progress=Progress())
        assert not (tmp_path / "tfds").exists()

    whole = (tars / TRAIN_TAR).read_bytes()
    (tars / TRAIN_TAR).write_bytes(whole[:-20_000])
    refused(ValueError, "img_train.tar.* is truncated, damaged or no tar")
    (tars / TRAIN_TAR).write_bytes(forms.tar_bytes({"n01440764.tar": forms.tar_bytes({"n01443537_2.JPEG": b""})}))
    refused(ValueError, r"n01440764/n01443537_2\.JPEG is no name of ImageNet's")
    (tars / TRAIN_TAR).unlink()
    refused(FileNotFoundError, r"no ILSVRC2012_img_train\.tar in .*Download .*138 GB.*image-net\.org/download-images")


def test_a_disk_that_is_too_small(tars, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(imagenet_writer.shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    with pytest.raises(OSError, match=r"has 0\.00 GB free, and 0\.00 GB are needed"):
        prepare_imagenet(str(tars), str(tmp_path / "tfds"), progress=Progress())


def test_two_at_once_and_something_else_in_its_place(tars, tmp_path):
    plan = tmp_path / "tfds/imagenet2012/incomplete.5.1.0.plan"
    plan.parent.mkdir(parents=True)
    with open(plan, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError, match="another process is preparing the same data set"):
            prepare_imagenet(str(tars), str(tmp_path / "tfds"), progress=Progress())
    os.mkdir(plan.parent / "5.1.0")
    with pytest.raises(FileExistsError, match=r"is there, without dataset_info\.json"):
        prepare_imagenet(str(tars), str(tmp_path / "tfds"), progress=Progress())
