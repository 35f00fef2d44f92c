"""Writing and checking files of label maps, see `label_maps`."""

import io
import json
import os
import pathlib
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from rmt_jax.data.label_maps import FORMAT, GRID, HALF, MAP_SHAPE, TOP, VERSION, LabelMaps, split_name

SHOWN = 5  # examples in an error or a report


class LabelMapWriter:
    """Writes a file of label maps: complete under its name at the end of the `with` block, or not there.

    Args:
        path: the file, replaced if it exists.
        provenance: where the maps come from, ready for JSON; may change until the end.
    """

    def __init__(self, path: pathlib.Path, provenance: Mapping[str, Any]) -> None:
        self._path, self.provenance = path, dict(provenance)
        self._partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
        self._stems: list[bytes] = []
        self._folders: dict[str, int] = {}
        self._folder_numbers: list[int] = []
        self._largest_id = -1

    def __enter__(self) -> "LabelMapWriter":
        # One record a chunk, so that reading a map reads nothing else.
        self._writer = ArrayRecordWriter(str(self._partial), "group_size:1,zstd:3")
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None:
                self._writer.write(self._index())
            self._writer.close()
            if kind is None:
                os.replace(self._partial, self._path)
        finally:
            self._partial.unlink(missing_ok=True)

    def __len__(self) -> int:
        return len(self._stems)

    def add(self, name: str, label_map: np.ndarray) -> None:
        """Write a map, float16 [2, 5, 18, 18], under its `map_name`.

        Raises:
            ValueError: it is none, see `map_problem`.
        """
        problem = map_problem(label_map)
        if problem:
            raise ValueError(f"label map of {name!r}: {problem}")
        folder, stem = split_name(name)
        self._stems.append(stem)
        self._folder_numbers.append(self._folders.setdefault(folder, len(self._folders)))
        self._largest_id = max(self._largest_id, int(label_map[1].max()))
        self._writer.write(label_map.astype(HALF, copy=False).tobytes())

    def _index(self) -> bytes:
        stems, numbers = np.array(self._stems, dtype=np.bytes_), np.array(self._folder_numbers, np.int32)
        order = np.lexsort((numbers, stems))
        stems, numbers = stems[order], numbers[order]
        repeated = np.flatnonzero((stems[1:] == stems[:-1]) & (numbers[1:] == numbers[:-1]))
        if len(repeated):
            raise ValueError(
                f"{len(repeated)} pictures have the name of another, the first is {os.fsdecode(stems[repeated[0]])!r}: "
                "label maps are found by folder and file name without its ending, which must differ"
            )
        header = {
            "format": FORMAT,
            "version": VERSION,
            "grid": GRID,
            "top": TOP,
            "num_classes": self._largest_id + 1,
            "provenance": self.provenance,
            "folders": list(self._folders),
        }
        buffer = io.BytesIO()
        np.savez(
            buffer,
            header=np.frombuffer(json.dumps(header).encode(), np.uint8),
            stems=stems,
            folder_numbers=numbers,
            positions=order.astype(np.int32),
        )
        return buffer.getvalue()


class Coverage(NamedTuple):
    """Which pictures of a data set have maps: counts, and the first ids of those that should be there and are not."""

    pictures: int
    missing: int
    surplus: int
    first_missing: list[str]
    first_surplus: list[str]


def coverage(
    maps: LabelMaps, picture_ids: Iterable[str], advance: Callable[[int], object] = lambda n: None
) -> Coverage:
    """Compare the maps with the pictures of a data set; `advance` is called with the number of pictures just seen."""
    used = np.zeros(len(maps), np.bool_)
    pictures, missing, first_missing = 0, 0, []
    for picture_id in picture_ids:
        pictures += 1
        rank = maps.find(picture_id)
        if rank is not None:
            used[rank] = True
        else:
            missing += 1
            first_missing += [picture_id] if missing <= SHOWN else []
        advance(1)
    surplus = len(maps) - int(used.sum())
    first_surplus = (
        [name for name, there in zip(maps.names(), used, strict=True) if not there][:SHOWN] if surplus else []
    )
    return Coverage(pictures, missing, surplus, first_missing, first_surplus)


def map_problem(label_map: object) -> str:
    """What makes an array no label map, in words; nothing if it is one."""
    if not isinstance(label_map, np.ndarray) or label_map.shape != MAP_SHAPE or label_map.dtype != np.float16:
        found = (
            f"{label_map.dtype} {label_map.shape}" if isinstance(label_map, np.ndarray) else type(label_map).__name__
        )
        return f"expected float16 {MAP_SHAPE}, found {found}"
    if not np.isfinite(label_map).all():
        return "holds NaN or infinite values"
    ids = label_map[1]
    if (ids < 0).any() or (ids != np.floor(ids)).any():
        return f"class ids must be whole numbers from 0 on, found {ids[(ids < 0) | (ids != np.floor(ids))][0]:g}"
    return ""
