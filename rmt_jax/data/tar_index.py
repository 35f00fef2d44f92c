"""Where every picture of a tar lies, read from the headers once and kept in a file beside the tar."""

import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import tarfile
import uuid
import zipfile
from collections.abc import Callable, Sequence
from typing import IO, NamedTuple, cast

import numpy as np

_FORMAT = 1  # of the index file; another one is rebuilt
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_BLOCK = 512


class Member(NamedTuple):
    """A file in a tar: its name, where its bytes start in the outermost tar, and how many they are."""

    name: str
    offset: int
    size: int


@dataclasses.dataclass(frozen=True)
class TarIndex:
    """Files in several tars; one entry a file in every array.

    Attributes:
        tar: position of its tar in the list of tars, int32.
        offset: of its first byte in that tar, int64.
        size: in bytes, int64.
        name: encoded as in file systems.
        ignored: how many entries of the tars are not listed, because they are no pictures.
    """

    tar: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    name: np.ndarray
    ignored: int

    def __len__(self) -> int:
        return len(self.name)


def make_index(members: Sequence[Sequence[Member]], ignored: int) -> TarIndex:
    """The index of the files of every tar, in the order given."""
    flat = [member for tar in members for member in tar]
    return TarIndex(
        tar=np.repeat(np.arange(len(members), dtype=np.int32), [len(tar) for tar in members]),
        offset=np.array([member.offset for member in flat], np.int64),
        size=np.array([member.size for member in flat], np.int64),
        name=np.array([os.fsencode(member.name) for member in flat], np.bytes_),
        ignored=ignored,
    )


def read_members(path: str, inside: Member | None = None) -> list[Member]:
    """The regular files of an uncompressed tar, or of a tar inside it, from its headers alone.

    Args:
        path: of the tar.
        inside: the tar within `path` that is meant.

    Raises:
        ValueError: compressed, truncated or damaged, no tar at all, or with sparse files.
    """
    where = path if inside is None else f"{path}, member {inside.name}"
    with open(path, "rb", buffering=0) as file:
        total = os.fstat(file.fileno()).st_size
        start, stop = (0, total) if inside is None else (inside.offset, inside.offset + inside.size)
        window = _Window(file.fileno(), start, stop)
        _check_readable(window.read(_BLOCK), where)
        window.seek(0)
        members = []
        try:
            with tarfile.open(fileobj=cast(IO[bytes], window), mode="r:") as tar:
                while (entry := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined]  # it would keep every header
                    if entry.issparse():
                        raise ValueError(f"{where}: {entry.name} is stored sparse, which cannot be read in place")
                    if entry.isreg():
                        members.append(Member(entry.name.removeprefix("./"), start + entry.offset_data, entry.size))
                end = tar.offset
        except tarfile.TarError as error:
            raise ValueError(_damaged(where, stop - start, str(error))) from error
        # To tarfile, a download that broke off between two members is a smaller tar.
        window.seek(end)
        if window.read(_BLOCK) != bytes(_BLOCK):
            raise ValueError(_damaged(where, stop - start, f"no end mark after {len(members)} files, at byte {end}"))
    return members


def _check_readable(head: bytes, where: str) -> None:
    for magic, kind in _COMPRESSED.items():
        if head.startswith(magic):
            raise ValueError(f"{where} is compressed ({kind}), and has no random access: decompress it once")
    if not head:
        raise ValueError(f"{where} is empty: download it again")


def _damaged(where: str, size: int, problem: str) -> str:
    return (
        f"{where} is truncated, damaged or no tar ({problem}; it has {size:,} bytes): compare its size, download again"
    )


class _Window:
    """A part of a file as a file that can be read and sought; reads nothing ahead, tars are mostly skipped."""

    def __init__(self, descriptor: int, start: int, stop: int) -> None:
        self._descriptor, self._start, self._stop, self._position = descriptor, start, stop, 0

    def read(self, size: int) -> bytes:
        at = self._start + self._position
        data = os.pread(self._descriptor, max(0, min(size, self._stop - at)), at)
        self._position += len(data)
        return data

    def seek(self, position: int) -> int:
        self._position = position
        return position

    def tell(self) -> int:
        return self._position


def cached_index(tars: Sequence[str], build: Callable[[], TarIndex], file: str) -> TarIndex:
    """The index of `tars` from `file`, or built and written there, or in the user's cache where `file` cannot be.

    It is built again when a tar's name, size or time of modification has changed, or the file cannot be read.
    """
    states = [(os.path.basename(path), os.stat(path)) for path in tars]
    key = json.dumps([_FORMAT, *((name, state.st_size, state.st_mtime_ns) for name, state in states)])
    places = [pathlib.Path(file), _user_cache(file)]
    for place in places:
        index = _load(place, key)
        if index is not None:
            return index
    logging.getLogger(__name__).info("reading the headers of %d tars, once: %s", len(tars), os.path.dirname(tars[0]))
    index = build()
    problems = []
    for place in places:
        try:
            _save(index, key, place)
        except OSError as error:
            problems.append(str(error))
        else:
            return index
    logging.getLogger(__name__).warning("the index of the tars is built every time: %s", "; ".join(problems))
    return index


def _user_cache(file: str) -> pathlib.Path:
    root = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    return root / "rmt_jax" / "tars" / f"{hashlib.sha256(os.fsencode(os.path.abspath(file))).hexdigest()[:32]}.npz"


def _load(file: pathlib.Path, key: str) -> TarIndex | None:
    """None where there is no index of these tars as they are now."""
    if not file.is_file():
        return None
    try:
        with open(file, "rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            if str(arrays["key"]) != key:
                return None
            names = {field.name for field in dataclasses.fields(TarIndex)} - {"ignored"}
            return TarIndex(**{name: arrays[name] for name in names}, ignored=int(arrays["ignored"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        logging.getLogger(__name__).warning("the index %s cannot be read and is built again: %s", file, error)
        return None


def _save(index: TarIndex, key: str, file: pathlib.Path) -> None:
    """Atomically: a reader finds the old index, the new one or none."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    try:
        with open(temporary, "wb") as stream:
            np.savez(stream, key=np.array(key), **vars(index))
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
