import io
import json
import logging
import os
import pickle

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from rmt_jax.data import DataConfig, ImageSource, decode, open_source


def png(value: int) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (12, 10), (value, 0, 0)).save(data, "PNG")
    return data.getvalue()


class TinyPictures(tfds.core.GeneratorBasedBuilder):
    """A TFDS data set as imagenet2012 is one: pictures of any size, named classes, file names."""

    VERSION = tfds.core.Version("1.2.0")
    code_path = None

    def _info(self):
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(encoding_format="png"),
                "label": tfds.features.ClassLabel(names=["cat", "dog"]),
                "file_name": tfds.features.Text(),
            }
        )
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(6, 0), "hidden": self._generate_examples(2, -1)}

    def _generate_examples(self, count, label):
        for i in range(count):
            yield i, {"image": io.BytesIO(png(i)), "label": -1 if label else i % 2, "file_name": f"picture_{i}.png"}


class TinyNumbers(tfds.core.GeneratorBasedBuilder):
    """A TFDS data set without pictures."""

    VERSION = tfds.core.Version("1.0.0")
    code_path = None

    def _info(self):
        features = tfds.features.FeaturesDict({"number": np.int64, "label": tfds.features.ClassLabel(num_classes=2)})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        yield 0, {"number": 5, "label": 1}


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    directory = str(tmp_path_factory.mktemp("tfds"))
    for builder in (TinyPictures, TinyNumbers):
        builder(data_dir=directory, file_format="array_record").download_and_prepare(
            download_config=tfds.download.DownloadConfig(try_download_gcs=False)
        )
    return directory


@pytest.fixture
def folder(tmp_path):
    """DIR/{train,val}/{cat,dog}/..., with the endings that data sets use."""
    files = {
        "train/dog/a.JPEG": 1,
        "train/cat/b.jpg": 2,
        "train/cat/a.png": 3,
        "train/cat/c.jpeg": 4,
        "train/cat/d.webp": 5,
        "val/cat/v.jpg": 6,
        "val/dog/w.jpg": 7,
    }
    for name, value in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png(value))
    (tmp_path / "train" / ".ipynb_checkpoints").mkdir()
    return tmp_path


def folder_config(path, **changes):
    return DataConfig(name="folder", dir=str(path), eval_split="val", **changes)


def values(source: ImageSource) -> list[tuple[int, int, str]]:
    examples = [source[i] for i in range(len(source))]
    return [(decode(e.image, e.id).getpixel((0, 0))[0], e.label, e.id) for e in examples]


def test_folder_reads_every_picture_with_classes_by_name(folder):
    source = open_source(folder_config(folder), "train")
    assert source.class_names == ("cat", "dog")
    assert source.num_classes == 2
    assert source.name == f"{folder.name}/train"
    assert values(source) == [
        (3, 0, "cat/a.png"),
        (2, 0, "cat/b.jpg"),
        (4, 0, "cat/c.jpeg"),
        (5, 0, "cat/d.webp"),
        (1, 1, "dog/a.JPEG"),
    ]
    assert values(open_source(folder_config(folder), "val")) == [(6, 0, "cat/v.jpg"), (7, 1, "dog/w.jpg")]


def test_folder_reports_what_it_does_not_read(folder, caplog):
    (folder / "train/dog/notes.txt").write_text("x")
    (folder / "train/dog/deeper").mkdir()
    with caplog.at_level(logging.WARNING):
        source = open_source(folder_config(folder), "train")
    assert len(source) == 5
    assert [r.getMessage() for r in caplog.records] == [
        f"{folder.name}/train: 2 entries are not pictures and are not read, the first is dog/deeper"
    ]


def test_folder_names_need_not_be_ascii(folder):
    (folder / "train/dog/größe 犬.png").write_bytes(png(9))
    assert values(open_source(folder_config(folder), "train"))[-1] == (9, 1, "dog/größe 犬.png")


def test_folder_without_directory():
    with pytest.raises(ValueError, match=r"needs data\.dir"):
        open_source(DataConfig(name="folder"), "train")


def test_folder_without_the_split_says_what_is_there(folder):
    with pytest.raises(FileNotFoundError, match=r"no folder .*validation .*which holds train, val: expected DIR/SPLIT"):
        open_source(folder_config(folder), "validation")
    with pytest.raises(FileNotFoundError, match="which does not exist itself"):
        open_source(folder_config(folder / "nowhere"), "train")


def test_folder_without_classes(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.jpg").write_bytes(png(1))
    with pytest.raises(ValueError, match="holds no class folders"):
        open_source(folder_config(tmp_path), "train")


def test_folder_with_an_empty_class(folder):
    for split in ("train", "val"):
        (folder / split / "owl").mkdir()
    with pytest.raises(ValueError, match=r"class folder .*train/owl holds no pictures \(\.jpg"):
        open_source(folder_config(folder), "train")


@pytest.mark.parametrize("split", ["train", "val"])
def test_folder_splits_must_have_the_same_classes(folder, split):
    (folder / "val/owl").mkdir()
    (folder / "val/owl/o.jpg").write_bytes(png(1))
    with pytest.raises(ValueError, match="same classes, but 1 are in one of them only: owl"):
        open_source(folder_config(folder), split)


def test_folder_of_one_split_is_enough_to_read_it(folder):
    (folder / "val").rename(folder / "elsewhere")
    assert len(open_source(folder_config(folder), "train")) == 5


@pytest.fixture
def flat(tmp_path):
    """DIR/{cat,dog}/..., 10 and 3 pictures."""
    for name, count in (("cat", 10), ("dog", 3)):
        (tmp_path / name).mkdir()
        for i in range(count):
            (tmp_path / name / f"{i}.png").write_bytes(png(i))
    return tmp_path


def sides(directory, fraction=0.2, names=("train", "validation")):
    config = DataConfig(name="folder", dir=str(directory), eval_fraction=fraction)
    return [[v[2] for v in values(open_source(config, name))] for name in names]


def test_held_out_share_is_of_every_class(flat):
    train, held_out = sides(flat)
    assert sorted(train + held_out) == sorted([f"cat/{i}.png" for i in range(10)] + [f"dog/{i}.png" for i in range(3)])
    assert [name.split("/")[0] for name in held_out] == ["cat", "cat", "dog"]
    # By the names alone: recorded, so that no version chooses others.
    assert held_out == ["cat/0.png", "cat/8.png", "dog/0.png"]
    assert [len(side) for side in sides(flat, 0.001)] == [11, 2]  # one at least
    assert [len(side) for side in sides(flat, 0.999)] == [2, 11]
    source = open_source(DataConfig(name="folder", dir=str(flat), eval_fraction=0.2), "validation")
    assert (source.name, source.class_names) == (f"{flat.name}/validation", ("cat", "dog"))


def test_more_pictures_move_few_to_the_other_side(flat):
    _, before = sides(flat)
    for i in range(10, 60):
        (flat / f"cat/{i}.png").write_bytes(png(i))
        _, after = sides(flat)
        assert len(set(after) ^ set(before)) <= 2  # one for another
        before = after
    assert len(before) == 12 + 1


def test_held_out_share_does_not_depend_on_the_listing(flat, monkeypatch):
    expected = sides(flat)
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: sorted(listdir(path), reverse=True))
    assert sides(flat) == expected


def test_held_out_share_needs_two_pictures_of_a_class(flat):
    for i in range(2):
        (flat / f"dog/{i}.png").unlink()
    with pytest.raises(ValueError, match=r"class folder .*/dog holds one picture: data\.eval_fraction needs two"):
        sides(flat)


def test_held_out_share_of_a_folder_with_splits(folder):
    with pytest.raises(ValueError, match=r"train holds no pictures .* without splits; leave it out for DIR/SPLIT"):
        sides(folder)


def test_folder_without_splits_says_how_to_hold_out(flat):
    with pytest.raises(FileNotFoundError, match=r"which holds cat, dog.*or DIR/CLASS.*data\.eval_fraction=0\.1"):
        open_source(folder_config(flat), "train")


def test_held_out_sides_have_two_names(flat):
    with pytest.raises(
        ValueError, match=r"split 'test': .* data\.train_split='train' or data\.eval_split='validation'"
    ):
        sides(flat, names=("test",))
    with pytest.raises(ValueError, match=r"are both 'train': with data\.eval_fraction they name its two sides"):
        DataConfig(name="folder", eval_fraction=0.1, eval_split="train")


@pytest.mark.parametrize("name", ["tar", "digits", "imagenet2012"])
def test_held_out_share_is_for_folders(name):
    with pytest.raises(ValueError, match=r"data\.eval_fraction=0\.1 is for data\.name=\"folder\", not"):
        DataConfig(name=name, eval_fraction=0.1)


@pytest.mark.parametrize("fraction", [-0.1, 1.0])
def test_held_out_share_out_of_range(fraction):
    with pytest.raises(ValueError, match=r"data\.eval_fraction=.*: expected a share"):
        DataConfig(name="folder", eval_fraction=fraction)


def test_tfds_source(tfds_dir):
    source = open_source(DataConfig(name="tiny_pictures", dir=tfds_dir), "train")
    assert (source.name, source.class_names, source.num_classes) == ("tiny_pictures/train", ("cat", "dog"), 2)
    assert sorted(values(source)) == [(i, i % 2, f"picture_{i}.png") for i in range(6)]


def test_tfds_split_may_be_a_slice_and_the_name_may_have_a_version(tfds_dir):
    source = open_source(DataConfig(name="tiny_pictures:1.2.0", dir=tfds_dir), "train[:50%]")
    assert len(source) == 3


def test_tfds_data_directory_may_be_relative_to_home(tfds_dir, monkeypatch):
    monkeypatch.setenv("HOME", tfds_dir)
    assert len(open_source(DataConfig(name="tiny_pictures", dir="~"), "train")) == 6


def test_tfds_unknown_split_names_the_known_ones(tfds_dir):
    with pytest.raises(ValueError, match=r"Unknown split 'validation'.*train"):
        open_source(DataConfig(name="tiny_pictures", dir=tfds_dir), "validation")


def test_tfds_empty_split(tfds_dir):
    with pytest.raises(ValueError, match=r"split 'train\[:0\]' .* is empty"):
        open_source(DataConfig(name="tiny_pictures", dir=tfds_dir), "train[:0]")


def test_tfds_hidden_labels(tfds_dir):
    source = open_source(DataConfig(name="tiny_pictures", dir=tfds_dir), "hidden")
    with pytest.raises(ValueError, match=r"record 'picture_\d.png' of tiny_pictures/hidden has no label"):
        source[0]


def test_tfds_without_pictures(tfds_dir):
    with pytest.raises(ValueError, match="has the features number, label: expected a picture `image`"):
        open_source(DataConfig(name="tiny_numbers", dir=tfds_dir), "train")


def test_tfds_not_prepared_says_where_and_how(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        open_source(DataConfig(name="imagenet2012", dir=str(tmp_path)), "train")
    message = str(error.value)
    assert f"no {tmp_path}/imagenet2012/5.1.0/dataset_info.json" in message
    assert f"rmt data imagenet --tars=TARS --data-dir={tmp_path}" in message
    assert "ILSVRC2012_img_train.tar (138 GB) and ILSVRC2012_img_val.tar (6.3 GB)" in message
    assert "https://image-net.org/download-images" in message
    with pytest.raises(FileNotFoundError) as error:
        open_source(DataConfig(name="oxford_iiit_pet", dir=str(tmp_path)), "train")
    assert f"tfds build oxford_iiit_pet --file_format=array_record --data_dir={tmp_path}" in str(error.value)


def test_tfds_prepared_in_another_version_is_mentioned(tmp_path):
    (tmp_path / "imagenet2012/5.0.0").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"found there: 5\.0\.0, read with data\.name=NAME:VERSION"):
        open_source(DataConfig(name="imagenet2012", dir=str(tmp_path)), "train")


def test_tfds_in_a_format_without_random_access(tmp_path):
    TinyPictures(data_dir=str(tmp_path), file_format="array_record").download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False)
    )
    path = tmp_path / "tiny_pictures/1.2.0/dataset_info.json"
    info = json.loads(path.read_text())
    assert info["fileFormat"] == "array_record"
    path.write_text(json.dumps({**info, "fileFormat": "tfrecord"}))
    with pytest.raises(ValueError, match=r"stored as tfrecord, which has no random access.*tfds convert_format"):
        open_source(DataConfig(name="tiny_pictures", dir=str(tmp_path)), "train")


@pytest.mark.parametrize(
    ("name", "hint"),
    [("imagenet2021", "did you mean imagenet2012"), ("digit", "did you mean digits"), ("zzzzzz", "catalog/overview")],
)
def test_unknown_data_sets_name_the_nearest_known_ones(name, hint):
    with pytest.raises(ValueError, match=rf"unknown data set data\.name='{name}': .*{hint}"):
        open_source(DataConfig(name=name), "train")


def test_sources_can_be_pickled(folder, tfds_dir):
    for config in (folder_config(folder), DataConfig(name="tiny_pictures", dir=tfds_dir)):
        source = open_source(config, "train")
        copy = pickle.loads(pickle.dumps(source))
        assert values(copy) == values(source)
        assert (copy.name, copy.class_names) == (source.name, source.class_names)
