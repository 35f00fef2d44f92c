"""Pictures that a user names: which files are meant, and what their results are called."""

import os
import pathlib

import pytest
from PIL import Image

from rmt_jax.data.pictures import Picture, Unreadable, find_pictures, read_pictures


@pytest.fixture
def photos(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.chdir(tmp_path)
    for name in ("photos/b.jpg", "photos/a.PNG", "photos/x/a.tiff", "photos/x/b.jpg", "photos/[1].png"):
        pathlib.Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (3, 2)).save(name)
    for name in ("photos/notes.txt", "photos/._b.jpg", "photos/.git/c.png"):
        pathlib.Path(name).parent.mkdir(exist_ok=True)
        pathlib.Path(name).touch()
    return tmp_path


def found(*words: str) -> dict[str, str]:
    return {str(file.path): str(file.stem) for file in find_pictures(words)}


def test_a_folder_is_read_to_its_depths(photos: pathlib.Path) -> None:
    assert found("photos") == {
        "photos/[1].png": "[1]",
        "photos/a.PNG": "a",
        "photos/b.jpg": "b",
        "photos/x/a.tiff": "x/a",
        "photos/x/b.jpg": "x/b",
    }


def test_globs_and_names_that_look_like_them(photos: pathlib.Path) -> None:
    assert list(found("photos/**/*.jpg")) == ["photos/b.jpg", "photos/x/b.jpg"]
    assert list(found("photos/[1].png")) == ["photos/[1].png"]
    assert list(found("photos/notes.txt")) == ["photos/notes.txt"]  # a file that is named is tried, whatever its ending


def test_each_is_read_once_and_has_a_name_of_its_own(photos: pathlib.Path) -> None:
    assert found("photos/b.jpg", "photos/x/b.jpg", "photos/*.jpg", "photos/a.PNG") == {
        "photos/b.jpg": "b",
        "photos/x/b.jpg": "b-2",
        "photos/a.PNG": "a",
    }


@pytest.mark.parametrize("word", ["none.jpg", "photos/*.bmp", "photos/.git/"])
def test_nothing_there(word: str, photos: pathlib.Path) -> None:
    pathlib.Path("photos/.git/c.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"There is no picture (in the folder )?"):
        find_pictures(["photos", word])


def test_what_cannot_be_read_is_said_and_the_rest_is_read(photos: pathlib.Path) -> None:
    pathlib.Path("photos/broken.mp4").write_bytes(b"no video")
    os.symlink("nowhere", "photos/gone.jpg")
    records = list(read_pictures(find_pictures(["photos/notes.txt", "photos"])))
    bad = {record.name: record.problem for record in records if isinstance(record, Unreadable)}
    assert set(bad) == {"photos/notes.txt", "photos/broken.mp4", "photos/gone.jpg"}
    assert "no video" in bad["photos/broken.mp4"]
    good = [record.image.size for record in records if isinstance(record, Picture)]
    assert good == [(3, 2)] * 5
