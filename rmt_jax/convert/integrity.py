"""Whether a checkpoint of a run is whole: each holds a list of its files with their sizes and checksums."""

import json
import pathlib
import zlib
from collections.abc import Sequence

import tensorstore

MANIFEST_FILE = "manifest.json"
METADATA_FILE = "_CHECKPOINT_METADATA"  # Orbax's own, of all items
CHECKPOINT_ITEMS = ("model", "ema", "optimizer")

_CHUNK = 2**22  # bytes read at a time


def write_manifest(folder: pathlib.Path) -> None:
    """List the files of a checkpoint in it, with their sizes and checksums; before it is committed under its name.

    Orbax adds to its files beside the items when it commits: those are not listed.
    """
    files = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "crc32": _checksum(path)}
        for item in CHECKPOINT_ITEMS
        for path in sorted((folder / item).rglob("*"))
        if path.is_file()
    }
    (folder / MANIFEST_FILE).write_text(json.dumps({"files": files}, indent=1) + "\n", encoding="utf-8")


def find_damage(folder: pathlib.Path, items: Sequence[str] = CHECKPOINT_ITEMS) -> str | None:
    """What is wrong with the files of a checkpoint, the first thing found; None where they are as they were written.

    A checkpoint without a readable manifest is read through instead: truncated and missing files are found, but not
    every changed bit.

    Args:
        folder: of one step.
        items: those that are needed.

    Raises:
        ValueError: a file may not be read.
    """
    try:
        for item in items:
            if not (folder / item).is_dir():
                return f"{item} is missing"
        if problem := _damaged_metadata(folder / METADATA_FILE):
            return problem
        files = _read_manifest(folder / MANIFEST_FILE)
        if files is None:
            return _unreadable_item(folder, items)
        for name, (size, checksum) in files.items():
            if name.partition("/")[0] in items and (problem := _damaged_file(folder / name, size, checksum)):
                return f"{name}: {problem}"
    except PermissionError as error:
        raise ValueError(f"{error.filename} cannot be read: {error.strerror}.") from error
    return None


def read_through(folder: pathlib.Path) -> None:
    """Read every entry of an Orbax checkpoint once, one after the other.

    Orbax reads them all at the same time. When one cannot be read it closes its event loop under the others, which
    then print a traceback each.

    Raises:
        ValueError, OSError: one cannot be read.
    """
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": f"{folder.resolve().as_uri()}/"}).result()
    keys = store.list().result()
    if not keys:  # how a database without its manifest reads
        raise ValueError("Its manifest is missing.")
    for key in keys:
        store.read(key).result()


def _checksum(path: pathlib.Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            checksum = zlib.crc32(chunk, checksum)
    return checksum


def _read_manifest(path: pathlib.Path) -> dict[str, tuple[int, int]] | None:
    """{file: (size, checksum)}; None of a checkpoint of before there were manifests, or whose manifest is damaged."""
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
        return {str(name): (int(entry["size"]), int(entry["crc32"])) for name, entry in files.items()}
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _damaged_file(path: pathlib.Path, size: int, checksum: int) -> str | None:
    try:
        found = path.stat().st_size
        if found != size:
            return f"{found:,} bytes instead of {size:,}"
        if _checksum(path) != checksum:
            return "its content has changed since it was written"
    except FileNotFoundError:
        return "missing"
    except PermissionError:
        raise
    except OSError as error:
        return f"cannot be read, {error.strerror}"
    return None


def _damaged_metadata(path: pathlib.Path) -> str | None:
    try:
        whole = isinstance(json.loads(path.read_bytes()), dict)
    except FileNotFoundError:
        return f"{path.name}: missing"
    except ValueError:
        whole = False
    return None if whole else f"{path.name}: its content has changed since it was written"


def _unreadable_item(folder: pathlib.Path, items: Sequence[str]) -> str | None:
    for item in items:
        try:
            read_through(folder / item)
        except PermissionError:
            raise
        except (ValueError, OSError) as error:  # tensorstore's own are ValueErrors
            return f"{item}: {str(error).splitlines()[0]}"
    return None
