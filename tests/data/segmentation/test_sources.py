"""Folders and TFDS data sets with label maps, on small stand-ins."""

import io
import pathlib
import pickle
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds

from rmt_jax.data import DataConfig, SegmentationDataConfig, open_source
from rmt_jax.data.segmentation import SegmentationSource, open_segmentation_source, palette
from rmt_jax.data.segmentation.ade20k import CLASS_NAMES
from rmt_jax.data.segmentation.labels import read_example
from tests.data.segmentation import standin
from tests.data.segmentation.standin import CLASSES, encode

REDUCED = SegmentationDataConfig(reduce_zero_label=True)


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    standin.write(tmp_path, "train", 4)
    standin.write(tmp_path, "val", 2)
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES) + "\n\n")
    return tmp_path


def check_examples(source: SegmentationSource, *, reduced: bool = False) -> None:
    for index in range(len(source)):
        image, labels = read_example(source[index], source.num_classes, reduced=reduced)
        number = int(source.id(index).removesuffix(".png"))
        for ours, expected in zip((image, labels), standin.example(number), strict=True):
            np.testing.assert_array_equal(ours, expected)
        assert source.size(index) == labels.shape


def test_label_folder(folder: pathlib.Path) -> None:
    source = open_segmentation_source(standin.config(folder), "train")
    assert (source.name, source.class_names, len(source)) == (f"{folder.name}/train", CLASSES, 4)
    assert [source.id(i) for i in range(4)] == ["00.png", "01.png", "02.png", "03.png"]
    check_examples(source)
    check_examples(pickle.loads(pickle.dumps(source)))
    assert len(open_segmentation_source(standin.config(folder), "val")) == 2


def test_pictures_of_another_format_have_maps_of_their_name(folder: pathlib.Path) -> None:
    shutil.move(folder / "images/train/02.png", folder / "images/train/größe.jpeg")
    shutil.move(folder / "labels/train/02.png", folder / "labels/train/größe.png")
    assert open_segmentation_source(standin.config(folder), "train").id(3) == "größe.jpeg"


def test_number_of_classes_without_names(folder: pathlib.Path) -> None:
    (folder / "classes.txt").unlink()
    with pytest.raises(ValueError, match=r"how many classes .* has: write .*classes\.txt with .* or set data\.segm"):
        open_segmentation_source(standin.config(folder), "train")
    source = open_segmentation_source(standin.config(folder, SegmentationDataConfig(num_classes=3)), "train")
    assert source.class_names == ("0", "1", "2")


def test_number_of_classes_must_be_that_of_the_names(folder: pathlib.Path) -> None:
    with pytest.raises(ValueError, match=r"num_classes=4, but .*/train has 3 classes: leave it out"):
        open_segmentation_source(standin.config(folder, SegmentationDataConfig(num_classes=4)), "train")


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (
            "images/train",
            r"no folder .*images/train: .*images holds val\. Expected DIR/images/SPLIT/NAME\.jpg and DIR/la",
        ),
        ("labels/train", r"no folder .*labels/train: .*labels holds val\. "),
        ("labels", r"no folder .*labels/train: .* holds classes\.txt, images\."),
        ("", "no folder .*: .* does not exist itself"),
    ],
)
def test_missing_folders_say_what_is_there(folder: pathlib.Path, missing: str, message: str) -> None:
    config = standin.config(folder, SegmentationDataConfig(num_classes=3))
    shutil.rmtree(folder / missing)
    with pytest.raises(FileNotFoundError, match=message):
        open_segmentation_source(config, "train")


def test_missing_label_maps_are_named(folder: pathlib.Path) -> None:
    for name in ("01.png", "03.png"):
        (folder / "labels/train" / name).unlink()
    with pytest.raises(
        FileNotFoundError, match=r"2 of the 4 pictures .* the first is 01\.png: expected .*labels/train/01\.png\. Add"
    ):
        open_segmentation_source(standin.config(folder), "train")


def test_empty_folder(folder: pathlib.Path) -> None:
    shutil.rmtree(folder / "images/train")
    (folder / "images/train").mkdir()
    with pytest.raises(ValueError, match=r"images/train holds no pictures \(\.jpg"):
        open_segmentation_source(standin.config(folder), "train")


def test_what_is_not_read_is_reported(folder: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "images/train/notes.txt").write_text("x")
    (folder / "images/train/.hidden").write_text("x")
    (folder / "images/train/03.png").unlink()
    with caplog.at_level("WARNING"):
        assert len(open_segmentation_source(standin.config(folder), "train")) == 3
    assert [record.getMessage() for record in caplog.records] == [
        f"{folder.name}/train: 2 files are neither a picture nor the label map of one, the first is notes.txt"
    ]


@pytest.mark.parametrize("name", ["label_folder", "ade20k"])
def test_folders_need_a_directory(name: str) -> None:
    with pytest.raises(ValueError, match=rf'data\.name="{name}" needs data\.dir'):
        open_segmentation_source(DataConfig(name=name), "train")


def test_ade20k_in_its_own_folders(tmp_path: pathlib.Path) -> None:
    root = tmp_path / "ADEChallengeData2016"
    standin.write(root, "training", 3, labels="annotations", first_label=1)
    for directory in (root, tmp_path):
        source = open_segmentation_source(
            DataConfig(name="ade20k", dir=str(directory), segmentation=REDUCED), "training"
        )
        assert source.name == "ADEChallengeData2016/training"
        check_examples(source, reduced=True)
    with pytest.raises(FileNotFoundError, match=r"images/validation: .* holds training\. .*DIR/annotations/SPLIT"):
        open_segmentation_source(DataConfig(name="ade20k", dir=str(root), segmentation=REDUCED), "validation")
    with pytest.raises(ValueError, match=r"numbers its 150 classes 1 \.\. 150.*set data\.segmentation\.reduce_zero"):
        open_segmentation_source(DataConfig(name="ade20k", dir=str(root)), "training")


def test_class_names_of_ade20k() -> None:
    assert len(CLASS_NAMES) == len(set(CLASS_NAMES)) == 150
    assert [CLASS_NAMES[i] for i in (0, 7, 44, 130, 149)] == ["wall", "bed", "chest of drawers", "screen", "flag"]


def test_palettes_are_apart_and_do_not_change_with_the_number_of_classes() -> None:
    colors = palette(150)
    assert (colors.shape, colors.dtype) == ((150, 3), np.uint8)
    np.testing.assert_array_equal(palette(21), colors[:21])
    distances = np.linalg.norm(colors[:, None].astype(float) - colors[None], axis=-1) + 1000 * np.eye(150)
    assert distances.min() > 30
    assert distances[:20, :20].min() > 75


class TinyMaps(tfds.core.GeneratorBasedBuilder):
    """A TFDS data set with label maps, its feature's name and kind as in `kind`."""

    VERSION = tfds.core.Version("1.0.0")
    code_path = None
    feature = ("segmentation_mask", tfds.features.Image(shape=(None, None, 1), encoding_format="png"))

    def _info(self) -> tfds.core.DatasetInfo:
        name, kind = self.feature
        features = {"image": tfds.features.Image(encoding_format="png"), name: kind, "file_name": tfds.features.Text()}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: object) -> dict:
        return {"train": self._generate_examples()}

    def label_map(self, labels: np.ndarray) -> bytes:
        return encode(labels)

    def _generate_examples(self):
        for i in range(3):
            image, labels = standin.example(i)
            maps = {self.feature[0]: io.BytesIO(self.label_map(labels))}
            yield i, {"image": io.BytesIO(encode(image)), **maps, "file_name": f"{i:02}.png"}


class TinyNamed(TinyMaps):
    """With named labels."""

    feature = ("label_map", tfds.features.LabeledImage(labels=list(CLASSES), encoding_format="png"))


class SceneParse150(TinyMaps):
    """As TFDS makes it: the red channel is one of 100 things, the green one the instance."""

    name = "scene_parse150"
    feature = ("annotation", tfds.features.Image(encoding_format="png"))

    def label_map(self, labels: np.ndarray) -> bytes:
        return encode(np.stack([labels] * 3, -1))


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = str(tmp_path_factory.mktemp("tfds"))
    for builder in (TinyMaps, TinyNamed, SceneParse150):
        builder(data_dir=directory, file_format="array_record").download_and_prepare(
            download_config=tfds.download.DownloadConfig(try_download_gcs=False)
        )
    return directory


def test_tfds_with_a_number_of_classes(tfds_dir: str) -> None:
    config = DataConfig(name="tiny_maps", dir=tfds_dir, segmentation=SegmentationDataConfig(num_classes=3))
    source = open_segmentation_source(config, "train")
    assert (source.name, source.class_names, len(source)) == ("tiny_maps/train", ("0", "1", "2"), 3)
    check_examples(source)
    check_examples(pickle.loads(pickle.dumps(source)))
    with pytest.raises(
        ValueError, match=r"how many classes tiny_maps/1\.0\.0 has: set data\.segmentation\.num_classes"
    ):
        open_segmentation_source(DataConfig(name="tiny_maps", dir=tfds_dir), "train")
    with pytest.raises(ValueError, match=r"Unknown split 'val'.*train"):
        open_segmentation_source(config, "val")
    with pytest.raises(ValueError, match=r"split 'train\[:0\]' .* is empty"):
        open_segmentation_source(config, "train[:0]")


def test_tfds_with_named_labels(tfds_dir: str) -> None:
    source = open_segmentation_source(DataConfig(name="tiny_named", dir=tfds_dir), "train")
    assert source.class_names == CLASSES
    check_examples(source)
    reduced = open_segmentation_source(DataConfig(name="tiny_named", dir=tfds_dir, segmentation=REDUCED), "train")
    assert reduced.class_names == CLASSES[1:]


def test_tfds_scene_parse150_is_another_challenge(tfds_dir: str) -> None:
    config = DataConfig(name="scene_parse150", dir=tfds_dir, segmentation=REDUCED)
    with pytest.raises(ValueError, match=r'instances of 100 things, .* download ADEChallengeData2016 .*"ade20k"'):
        open_segmentation_source(config, "train")


def test_tfds_without_label_maps(digits_dir: str) -> None:
    with pytest.raises(ValueError, match=r"the features .*: expected .* label map `annotation` or `segm"):
        open_segmentation_source(DataConfig(name="digits:1.0.0", dir=digits_dir), "train")


def test_names_of_the_other_kind_and_unknown_ones(tmp_path: pathlib.Path) -> None:
    with pytest.raises(
        ValueError, match=r"data\.name='digits' has one label a picture: .* ade20k, label_folder, digits_"
    ):
        open_segmentation_source(DataConfig(name="digits"), "train")
    with pytest.raises(ValueError, match=r"'ade20k' has a label for every pixel, .* expected digits, folder, tar or"):
        open_source(DataConfig(name="ade20k"), "train")
    with pytest.raises(ValueError, match=r"unknown data set data\.name='ade2k': did you mean ade20k"):
        open_segmentation_source(DataConfig(name="ade2k", dir=str(tmp_path)), "train")
