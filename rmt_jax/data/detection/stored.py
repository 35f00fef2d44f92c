"""Annotations in a file of arrays that all processes map into memory, so that the json is read and checked once."""

import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import uuid
from collections.abc import Callable
from typing import Any

import numpy as np

from rmt_jax.data.detection.annotations import Annotations

_FORMAT = 1  # of the file; another one is rebuilt
_MAGIC = b"rmt_jax annotations\n"
_ALIGNMENT = 64
_ARRAYS = tuple(field.name for field in dataclasses.fields(Annotations) if field.type is np.ndarray)


@dataclasses.dataclass(frozen=True, eq=False)
class _MappedAnnotations(Annotations):
    """Annotations that go to other processes by the name of their file.

    Attributes:
        file: that they are in.
        key: what they were made from.
    """

    file: str
    key: str

    def __reduce__(self) -> tuple[Any, ...]:
        return _reload, (self.file, self.key)


def stored_annotations(key: list[Any], build: Callable[[], Annotations], file: str) -> Annotations:
    """Annotations from `file`, or built and written there, or in the user's cache where `file` cannot be.

    key: what they were made from; with another they are built again.
    """
    text = json.dumps([_FORMAT, *key])
    places = [_user_cache(file)] if "://" in file else [pathlib.Path(file), _user_cache(file)]
    for place in places:
        found = _load(place, text)
        if found is not None:
            return found
    annotations = build()
    problems = []
    for place in places:
        try:
            _save(annotations, text, place)
        except OSError as error:
            problems.append(str(error))
        else:
            return _load(place, text) or annotations
    logging.getLogger(__name__).warning(
        "annotations are read anew every time, and copied to every worker process: %s", "; ".join(problems)
    )
    return annotations


def _user_cache(file: str) -> pathlib.Path:
    root = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    return root / "rmt_jax" / "annotations" / hashlib.sha256(os.fsencode(os.path.abspath(file))).hexdigest()[:32]


def _save(annotations: Annotations, key: str, file: pathlib.Path) -> None:
    """Atomically: a reader finds the old file, the new one or none."""
    arrays = {name: np.ascontiguousarray(getattr(annotations, name)) for name in _ARRAYS}
    head = {
        "key": key,
        "class_names": annotations.class_names,
        "category_ids": annotations.category_ids,
        "strangers": annotations.strangers,
        "arrays": {name: (array.dtype.str, array.shape) for name, array in arrays.items()},
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    try:
        with open(temporary, "wb") as stream:
            stream.write(_MAGIC + json.dumps(head).encode() + b"\n")
            for array in arrays.values():
                stream.write(bytes(-stream.tell() % _ALIGNMENT))
                stream.write(array.data)
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def _load(file: pathlib.Path, key: str) -> Annotations | None:
    """None where there are none made from the same."""
    if not file.is_file():
        return None
    try:
        with open(file, "rb") as stream:
            if stream.readline() != _MAGIC:
                raise ValueError("it does not begin like one")
            head = json.loads(stream.readline())
            position = stream.tell()
        if head["key"] != key:
            return None
        content = np.memmap(file, np.uint8, "r").view(np.ndarray)
        arrays = {}
        for name, (kind, shape) in head["arrays"].items():
            dtype = np.dtype(kind)
            position += -position % _ALIGNMENT
            size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            arrays[name] = content[position : position + size].view(dtype).reshape(shape)
            position += size
        return _MappedAnnotations(
            class_names=tuple(head["class_names"]),
            category_ids=tuple(head["category_ids"]),
            strangers=head["strangers"],
            file=str(file),
            key=key,
            **arrays,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        logging.getLogger(__name__).warning("the annotations in %s cannot be read, and are made anew: %s", file, error)
        return None


def _reload(file: str, key: str) -> Annotations:
    """In another process."""
    annotations = _load(pathlib.Path(file), key)
    if annotations is None:
        raise ValueError(f"{file} was changed while it was in use: start again")
    return annotations
