"""Every source of pictures gives the same ones, here from the stand-in for ImageNet."""

import io
import pathlib
import subprocess
import sys

import pytest
from PIL import Image

from rmt_jax.data import CorruptImageError, DataConfig, decode, imagenet, open_source
from rmt_jax.data.imagenet_shards import Progress
from tests import standin

CONFIGS = {
    "folder": {"name": "folder", "eval_split": "val"},
    "class_tars": {"name": "tar", "eval_split": "val"},
    "tars": {"name": "tar"},
    "tfds": {"name": "imagenet2012"},
}


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, dict[str, standin.Pictures]]:
    directory = tmp_path_factory.mktemp("standin")
    return directory, standin.write_all(directory, train=5, validation=2, truncated=True, progress=Progress())


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("form", CONFIGS)
def test_every_form_has_the_same_pictures(forms, form: str, split: str) -> None:
    directory, pictures = forms
    config = DataConfig(dir=str(directory / form), **CONFIGS[form])
    source = open_source(config, "train" if split == "train" else config.eval_split)
    # Folders and tars of a class number the classes that are there, ImageNet's own forms all 1,000.
    synsets = sorted(standin.PHOTOGRAPHS) if form in ("folder", "class_tars") else imagenet.class_names()
    assert source.class_names == tuple(synsets)
    found = {}
    for example in (source[i] for i in range(len(source))):
        synset, name = synsets[example.label], example.id.rpartition("/")[2]
        assert example.id in (name, f"{synset}/{name}")
        given = pictures[split][synset][name]
        odd = [f"n02124075_{10 * oddity}.JPEG" for oddity in (standin.CMYK, standin.PNG)]
        if form == "tfds" and name in odd:
            assert decode(example.image, name).size == decode(given, name).size
        else:
            assert example.image == given
        found[synset, name] = True
    assert found.keys() == {(synset, name) for synset, files in pictures[split].items() for name in files}


def test_a_folder_without_splits_has_all_pictures_on_two_sides(forms) -> None:
    directory, pictures = forms
    config = DataConfig("folder", dir=str(directory / "flat"), eval_fraction=0.25)
    sides = [
        {e.id: e.image for e in map(source.__getitem__, range(len(source)))}
        for source in (open_source(config, "train"), open_source(config, "validation"))
    ]
    assert not sides[0].keys() & sides[1].keys()
    classes = [classes for split in pictures.values() for classes in split.items()]
    assert sides[0] | sides[1] == {
        f"{synset}/{name}": data for synset, files in classes for name, data in files.items()
    }
    assert len(sides[1]) == 8 * round(7 * 0.25)


def test_the_oddities_are_what_they_are_called(forms) -> None:
    images = list(forms[1]["train"]["n02124075"].values())
    assert images[standin.PNG].startswith(b"\x89PNG")
    with pytest.raises(CorruptImageError):
        decode(images[standin.TRUNCATED], "x")
    opened = [Image.open(io.BytesIO(data)) for data in images]
    assert opened[standin.CMYK].mode == "CMYK"
    assert opened[standin.GREY].mode == "L"
    assert opened[standin.ROTATED].getexif()[standin.EXIF_ORIENTATION] == 6
    assert [image.mode for image in opened[standin.PNG :]] == ["RGB", "RGB", "RGB"]


def test_the_command(tmp_path: pathlib.Path) -> None:
    command = [sys.executable, "-m", "tests.standin", str(tmp_path / "new"), "--train=2", "--validation=1"]
    done = subprocess.run(
        command, cwd=pathlib.Path(__file__).parent.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("(train: 16 pictures, validation: 8 pictures)\n")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "class_tars",
        "flat",
        "folder",
        "tars",
        "tfds",
    ]
