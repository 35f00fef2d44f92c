"""Pictures that a user names: files, folders, globs, and frames of videos."""

import glob
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import cv2
from PIL import Image

from rmt_jax.data.decode import CorruptImageError, decode

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
VIDEO_ENDINGS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg")


class File(NamedTuple):
    """A file with a picture, or with many.

    Attributes:
        path: as given, or as found below what was given.
        stem: what its results are called: the path below the folder that was given, without its ending, unique.
        pictures: that are read of it, as many as a video says that it has.
    """

    path: pathlib.Path
    stem: pathlib.PurePath
    pictures: int = 1


class Picture(NamedTuple):
    """A picture.

    Attributes:
        name: the path; of a frame PATH@00012, counted from 0.
        stem: what its results are called, see `File`.
        image: 8-bit RGB.
    """

    name: str
    stem: pathlib.PurePath
    image: Image.Image


class Unreadable(NamedTuple):
    """What should have been a picture, and what is wrong with it."""

    name: str
    problem: str


def find_pictures(words: Sequence[str], *, every: int = 1) -> list[File]:
    """The files that are meant, each once, in the order given, and by name within a folder or glob.

    Args:
        words: files of any name; folders, of which all pictures and videos with a usual ending are taken, however deep,
            but nothing hidden; globs such as "photos/**/*.jpg", of which files are taken.
        every: of a video, take every so many frames.

    Raises:
        FileNotFoundError: there is no such file, or nothing to read in a folder or glob.
    """
    found: dict[pathlib.Path, pathlib.PurePath] = {}
    for word in words:
        path = pathlib.Path(word).expanduser()
        if path.is_dir():
            inside = sorted(_below(path))
            if not inside:
                raise FileNotFoundError(f"There is no picture in the folder {word} ({', '.join(ENDINGS)}).")
        elif path.is_file():
            inside = [path]
        else:
            inside = sorted(pathlib.Path(name) for name in glob.glob(str(path), recursive=True) if os.path.isfile(name))
            if not inside:
                raise FileNotFoundError(f"There is no picture {word}.")
        for file in inside:
            stem = file.relative_to(path) if path.is_dir() else pathlib.PurePath(file.name)
            found.setdefault(file, stem.with_suffix(""))
    files, used = [], set()
    for path, stem in found.items():
        unique, number = stem, 1
        while unique in used:
            number += 1
            unique = stem.with_name(f"{stem.name}-{number}")
        used.add(unique)
        files.append(File(path, unique, _count_frames(path, every) if is_video(path) else 1))
    return files


def read_pictures(files: Sequence[File], *, every: int = 1) -> Iterator[Picture | Unreadable]:
    """Each picture, decoded when it is asked for."""
    for file in files:
        if is_video(file.path):
            yield from _frames(file, every)
        else:
            yield _read(file)


def is_video(path: pathlib.Path) -> bool:
    """By its ending."""
    return path.suffix.lower() in VIDEO_ENDINGS


def _below(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if name.lower().endswith(ENDINGS + VIDEO_ENDINGS) and not name.startswith("."):
                yield pathlib.Path(place) / name


def _read(file: File) -> Picture | Unreadable:
    name = str(file.path)
    try:
        return Picture(name, file.stem, decode(file.path.read_bytes(), name))
    except (CorruptImageError, OSError) as error:
        return Unreadable(name, str(error))


def _open_video(path: pathlib.Path) -> cv2.VideoCapture:
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # nothing: what is wrong is for the reader to say
    return cv2.VideoCapture(str(path))


def _count_frames(path: pathlib.Path, every: int) -> int:
    video = _open_video(path)
    frames = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
    video.release()
    return max(1, -(-frames // every))


def _frames(file: File, every: int) -> Iterator[Picture | Unreadable]:
    video, frame = _open_video(file.path), 0
    try:
        while video.grab():
            if frame % every == 0:
                name = f"{file.path}@{frame:05}"
                stem = file.stem.with_name(f"{file.stem.name}@{frame:05}")
                whole, pixels = video.retrieve()
                if whole:
                    yield Picture(name, stem, Image.fromarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)))
                else:
                    yield Unreadable(name, f"{name}: the frame cannot be decoded")
            frame += 1
    finally:
        video.release()
    if not frame:
        yield Unreadable(str(file.path), f"{file.path}: no video that can be read, or an empty one")
