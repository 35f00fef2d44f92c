import io
import logging
import os
import pathlib
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from rmt_jax.data import DataConfig, open_source, tar_index
from rmt_jax.data.imagenet import TRAIN_TAR, VALIDATION_TAR, class_names
from tests.standin import tar_bytes

CATS = {"cat/a.jpg": b"first", "cat/b.JPEG": b"second"}
DOGS = {"c.png": b"third picture"}


@pytest.fixture(autouse=True)
def user_cache(tmp_path_factory, monkeypatch):
    """A user's cache directory of its own."""
    directory = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(directory))
    return directory


@pytest.fixture
def tars(tmp_path):
    """DIR/train/{cat,dog}.tar."""
    (tmp_path / "train").mkdir()
    (tmp_path / "train/cat.tar").write_bytes(tar_bytes(CATS))
    (tmp_path / "train/dog.tar").write_bytes(tar_bytes(DOGS))
    return tmp_path


def open_tars(directory, split="train", **changes):
    return open_source(DataConfig(name="tar", dir=str(directory), **changes), split)


def examples(source):
    return [(e.image, e.label, e.id) for e in (source[i] for i in range(len(source)))]


EXPECTED = [(b"first", 0, "cat/a.jpg"), (b"second", 0, "cat/b.JPEG"), (b"third picture", 1, "dog/c.png")]


def test_a_tar_a_class(tars):
    source = open_tars(tars)
    assert (source.name, source.class_names) == (f"{tars.name}/train", ("cat", "dog"))
    assert examples(source) == EXPECTED
    assert examples(source)[-1] == (source[-1].image, source[-1].label, source[-1].id)


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("depth", ["", "./", "./cat/"])
def test_formats_long_names_and_folders_inside(tmp_path, tar_format, depth):
    # Longer than the 100 bytes of a header; USTAR splits at a slash.
    long = "x" * 60 + "/" + "y" * 60 + ".jpg"
    names = {f"{depth}b.jpg": b"B" * 700, f"{depth}{long}": b"A", f"{depth}größe.jpg": b""}
    (tmp_path / "train").mkdir()
    (tmp_path / "train/cat.tar").write_bytes(tar_bytes(names, tar_format))
    assert examples(open_tars(tmp_path)) == [
        (b"B" * 700, 0, "cat/b.jpg"),
        (b"", 0, "cat/größe.jpg"),
        (b"A", 0, f"cat/{long}"),
    ]


def test_what_is_not_read_is_said(tars, caplog):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name in ("folder", "a.jpg", "._a.jpg", "notes.txt"):
            entry = tarfile.TarInfo(name)
            entry.type = tarfile.DIRTYPE if name == "folder" else tarfile.REGTYPE
            tar.addfile(entry, io.BytesIO())
    (tars / "train/owl.tar").write_bytes(data.getvalue())
    for _ in range(2):  # the second one reads the cached index
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert len(open_tars(tars)) == 4
        assert [r.getMessage() for r in caplog.records] == [
            f"{tars.name}/train: 2 files in the tars are not pictures (.jpg, .jpeg, .png, .webp) and are not read"
        ]


def test_imagenet_as_it_is_handed_out(tmp_path):
    inner = {
        "n01443537.tar": tar_bytes({"n01443537_2.JPEG": b"fish", "n01443537_10.JPEG": b"other fish"}),
        "n01440764.tar": tar_bytes({"n01440764_5.JPEG": b"tench"}),
    }
    (tmp_path / TRAIN_TAR).write_bytes(tar_bytes(inner))
    (tmp_path / VALIDATION_TAR).write_bytes(
        tar_bytes({"ILSVRC2012_val_00000002.JPEG": b"two", "ILSVRC2012_val_00000001.JPEG": b"one"})
    )
    train = open_tars(tmp_path)
    assert train.class_names == class_names()
    assert examples(train) == [
        (b"other fish", 1, "n01443537/n01443537_10.JPEG"),
        (b"fish", 1, "n01443537/n01443537_2.JPEG"),
        (b"tench", 0, "n01440764/n01440764_5.JPEG"),
    ]
    # Labels from the list that TFDS carries: n01751748 and n09193705.
    expected = [(b"one", 65, "ILSVRC2012_val_00000001.JPEG"), (b"two", 970, "ILSVRC2012_val_00000002.JPEG")]
    assert examples(open_tars(tmp_path, "validation")) == expected
    assert examples(open_tars(tmp_path, "val", eval_split="val")) == expected
    assert len(class_names()) == 1000


def test_pickled_and_read_by_threads(standin):
    directory, pictures = standin
    source = open_tars(directory / "tars")
    copy = pickle.loads(pickle.dumps(source))
    order = np.random.default_rng(0).integers(len(source), size=400).tolist()
    open_before = os.listdir("/proc/self/fd")
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(copy.__getitem__, order))
    assert len(os.listdir("/proc/self/fd")) == len(open_before)
    for example in found:
        synset, name = example.id.split("/")
        assert example.image == pictures["train"][synset][name]
        assert copy.class_names[example.label] == synset


def count_builds(monkeypatch):
    builds, read = [], tar_index.tarfile.open
    monkeypatch.setattr(tar_index.tarfile, "open", lambda **words: builds.append(1) or read(**words))
    return builds


def test_headers_are_read_once(tars, monkeypatch):
    builds = count_builds(monkeypatch)
    assert examples(open_tars(tars)) == EXPECTED
    assert len(builds) == 2
    assert sorted(os.listdir(tars / "train")) == ["cat.tar", "dog.tar", "tars.index.npz"]
    assert examples(open_tars(tars)) == EXPECTED
    assert len(builds) == 2


def test_index_of_other_tars_is_not_used(tars):
    open_tars(tars)
    path = tars / "train/dog.tar"
    state = path.stat()
    # The same size: only the time tells.
    path.write_bytes(tar_bytes({"d.png": b"third picture"}))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert examples(open_tars(tars))[-1] == (b"third picture", 1, "dog/d.png")
    state = path.stat()
    # The same time: only the size tells.
    path.write_bytes(tar_bytes({f"{i}.png": bytes(5000) for i in range(3)}))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert len(open_tars(tars)) == 5
    (tars / "train/cat.tar").rename(tars / "train/ape.tar")
    assert open_tars(tars)[0].id == "ape/cat/a.jpg"


@pytest.mark.parametrize("damage", [b"", b"no zip file", None])
def test_damaged_index_is_built_again(tars, caplog, damage):
    open_tars(tars)
    path = tars / "train/tars.index.npz"
    path.write_bytes(path.read_bytes()[:-40] if damage is None else damage)
    with caplog.at_level(logging.WARNING):
        assert examples(open_tars(tars)) == EXPECTED
    assert "cannot be read and is built again" in caplog.text
    caplog.clear()
    assert examples(open_tars(tars)) == EXPECTED
    assert not caplog.text


def test_index_goes_to_the_users_cache_where_it_cannot_be_beside(tars, user_cache, monkeypatch):
    (tars / "train/tars.index.npz").mkdir()
    builds = count_builds(monkeypatch)
    for _ in range(2):
        assert examples(open_tars(tars)) == EXPECTED
    assert len(builds) == 2
    assert [path.suffix for path in user_cache.rglob("*") if path.is_file()] == [".npz"]
    assert sorted(os.listdir(tars / "train")) == ["cat.tar", "dog.tar", "tars.index.npz"]


def test_without_any_place_for_the_index(tars, tmp_path, monkeypatch, caplog):
    (tars / "train/tars.index.npz").mkdir()
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        assert examples(open_tars(tars)) == EXPECTED
    assert "the index of the tars is built every time" in caplog.text


@pytest.mark.parametrize("cut", [100, 512, 600, 1024, 1536, 1700])
def test_truncated_tars(tars, cut):
    whole = tar_bytes({"a.jpg": b"A" * 512, "b.jpg": b"B" * 512}, tarfile.USTAR_FORMAT)[:2048]
    path = tars / "train/cat.tar"
    path.write_bytes(whole[:cut])
    with pytest.raises(ValueError, match=r"train/cat\.tar is truncated, damaged or no tar .*download again"):
        open_tars(tars)
    path.write_bytes(whole)  # not even one block of the end mark
    with pytest.raises(ValueError, match="no end mark after 2 files, at byte 2048"):
        open_tars(tars)
    path.write_bytes(whole + bytes(512))
    assert len(open_tars(tars)) == 3


def test_tar_truncated_inside_imagenets(tmp_path):
    inner = tar_bytes({"n01440764_5.JPEG": b"tench"})
    (tmp_path / TRAIN_TAR).write_bytes(tar_bytes({"n01440764.tar": inner[:1024]}))
    with pytest.raises(ValueError, match=rf"{TRAIN_TAR}, member n01440764\.tar is truncated"):
        open_tars(tmp_path)


def test_damage_between_two_files(tars):
    data = bytearray(tar_bytes({"a.jpg": b"A" * 512, "b.jpg": b"B" * 512}))
    data[1024 + 150] ^= 1  # the checksum of the second header
    (tars / "train/cat.tar").write_bytes(data)
    with pytest.raises(ValueError, match="no end mark after 1 files, at byte 1024"):
        open_tars(tars)


@pytest.mark.parametrize(("mode", "kind"), [("w:gz", "gzip"), ("w:bz2", "bzip2"), ("w:xz", "xz")])
def test_compressed_tars(tars, mode, kind):
    with tarfile.open(tars / "train/cat.tar", mode):
        pass
    with pytest.raises(ValueError, match=rf"cat\.tar is compressed \({kind}\).*decompress it once"):
        open_tars(tars)
    (tars / "train/cat.tar").rename(tars / "train/cat.tar.gz")
    (tars / "train/dog.tar").unlink()
    with pytest.raises(FileNotFoundError, match="compressed tars have no random access"):
        open_tars(tars)


def test_empty_tars_and_tars_without_pictures(tars):
    path = tars / "train/cat.tar"
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"cat\.tar is empty: download it again"):
        open_tars(tars)
    for files in ({}, {"notes.txt": b"x"}):
        path.write_bytes(tar_bytes(files))
        with pytest.raises(ValueError, match=rf"cat\.tar holds no pictures .*: {len(files)} files"):
            open_tars(tars)


def test_sparse_files_are_refused(tars):
    header = bytearray(tar_bytes({"a.jpg": b""}, tarfile.GNU_FORMAT))
    header[156:157] = b"S"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])
    (tars / "train/cat.tar").write_bytes(header)
    with pytest.raises(ValueError, match=r"a\.jpg is stored sparse"):
        open_tars(tars)


def test_several_pictures_of_one_name(tars):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name in ("a.jpg", "./a.jpg"):
            tar.addfile(tarfile.TarInfo(name))
    (tars / "train/cat.tar").write_bytes(data.getvalue())
    with pytest.raises(ValueError, match=r"cat\.tar holds several pictures of one name"):
        open_tars(tars)


def test_tar_that_shrinks_while_it_is_open(tars):
    source = open_tars(tars)
    os.truncate(tars / "train/dog.tar", 514)
    with pytest.raises(ValueError, match=r"dog\.tar ends within dog/c\.png: it has changed"):
        source[2]


def test_not_imagenets(tmp_path):
    (tmp_path / TRAIN_TAR).write_bytes(tar_bytes({"n01440764.tar": b"", "cat.tar": b""}))
    with pytest.raises(ValueError, match=r"is not ImageNet's training tar.*cat\.tar is none of them"):
        open_tars(tmp_path)
    (tmp_path / TRAIN_TAR).write_bytes(tar_bytes({"n01440764_5.JPEG": b""}))
    with pytest.raises(ValueError, match="there is no tar in it"):
        open_tars(tmp_path)
    for name in ("picture.JPEG", "ILSVRC2012_val_00050001.JPEG", "ILSVRC2012_val_00000000.JPEG"):
        (tmp_path / VALIDATION_TAR).write_bytes(tar_bytes({name: b""}))
        with pytest.raises(ValueError, match=f"'{name}' is no validation picture of ImageNet"):
            open_tars(tmp_path, "validation")


def test_missing_tars_say_what_to_get(tars):
    with pytest.raises(ValueError, match=r"needs data\.dir"):
        open_source(DataConfig(name="tar"), "train")
    with pytest.raises(FileNotFoundError) as error:
        open_tars(tars, "validation")
    for words in (f"no tars of split 'validation' in {tars}: {tars} holds train", "DIR/SPLIT/CLASS.tar"):
        assert words in str(error.value)
    for directory in (tars, tars / "nowhere"):
        with pytest.raises(FileNotFoundError, match=r"ILSVRC2012_img_train\.tar \(138 GB\).*image-net\.org/download"):
            open_tars(directory, "validation")


def test_splits_must_have_the_same_classes(tars):
    (tars / "val").mkdir()
    (tars / "val/cat.tar").write_bytes(tar_bytes(CATS))
    for split in ("train", "val"):
        with pytest.raises(ValueError, match="same classes, but 1 are in one of them only: dog"):
            open_tars(tars, split, eval_split="val")


def test_two_forms_of_one_split(tars):
    (tars / TRAIN_TAR).write_bytes(tar_bytes({"n01440764.tar": tar_bytes({"n01440764_5.JPEG": b""})}))
    with pytest.raises(ValueError, match=r"split 'train' is both .* move one of them elsewhere"):
        open_tars(tars)


def test_paths_may_be_relative_to_home(tars: pathlib.Path, monkeypatch):
    monkeypatch.setenv("HOME", str(tars))
    assert len(open_tars("~")) == 3
