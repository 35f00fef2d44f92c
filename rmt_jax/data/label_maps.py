"""Label maps for token labelling: one indexed array_record file, and the geometry that follows the picture's.

A map holds the best classes in each cell of an 18x18 grid over the whole picture: float16 [2, 5, 18, 18], five scores
and then their five class ids, as "All Tokens Matter" (arXiv 2104.10858) publishes them, one file a picture.
"""

import io
import json
import math
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from rmt_jax.data.interface import PICTURE_ENDINGS
from rmt_jax.data.randaugment import GEOMETRIC, Operation

TOP, GRID = 5, 18
MAP_SHAPE = (2, TOP, GRID, GRID)
MAX_CLASSES = 2049  # float16 holds every whole number up to 2048
FORMAT, VERSION = "rmt_jax label maps", 1

HALF = np.dtype("<f2")
DOCS = "See docs/token_labels.md."


class MissingLabelMapError(ValueError):
    """A picture has no label map in the file."""


class LabelMaps:
    """The maps of a file, by picture; any number of threads may read, and worker processes get a copy by pickling.

    The file has one record for each map, its bytes, and a last record with the index: names in sorted order.

    Args:
        path: a file that `rmt labels pack` or `rmt labels make` wrote.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is another file, damaged, or of a later version.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = pathlib.Path(path).expanduser()
        if not self.path.is_file():
            raise FileNotFoundError(
                f"no file of label maps {self.path}: write it with `rmt labels pack TREE {self.path.name}` from "
                f"published maps, or with `rmt labels make --teacher WEIGHTS {self.path.name}` from a model's. {DOCS}"
            )
        self._reader, header, index = _open(self.path)
        self.provenance: Mapping[str, Any] = header["provenance"]
        self.num_classes: int = header["num_classes"]
        self._folders: list[str] = header["folders"]
        self._stems, self._folder_numbers = index["stems"], index["folder_numbers"]
        self._positions = index["positions"]

    def __getstate__(self) -> pathlib.Path:
        return self.path

    def __setstate__(self, path: pathlib.Path) -> None:
        self.__init__(path)  # type: ignore[misc]

    def __len__(self) -> int:
        return len(self._stems)

    def __contains__(self, picture_id: str) -> bool:
        return self.find(picture_id) is not None

    def __getitem__(self, picture_id: str) -> tuple[np.ndarray, np.ndarray]:
        """(scores float16, class ids int16), each [5, 18, 18].

        Args:
            picture_id: of an `Example`, such as "n01440764_10026.JPEG" or "n01440764/n01440764_10026.JPEG". The file's
                name without its ending counts; the folder only where several maps have that name.

        Raises:
            MissingLabelMapError: there is none.
        """
        rank = self.find(picture_id)
        if rank is None:
            raise MissingLabelMapError(
                f"{self.path} has no label map for the picture {picture_id!r}. What is missing is listed by `rmt "
                f"labels check {self.path} --config CONFIG`; a complete file is made by `rmt labels pack` or `rmt "
                f"labels make`. {DOCS}"
            )
        scores, ids = self.stored(rank)
        return scores, ids.astype(np.int16)

    def find(self, picture_id: str) -> int | None:
        """Rank of a picture's map in the sorted names, or None."""
        folder, stem = split_name(map_name(picture_id))
        if len(stem) > self._stems.itemsize:  # NumPy would widen a copy of all names before it looks
            return None
        first, last = (int(np.searchsorted(self._stems, stem, side)) for side in ("left", "right"))
        if last - first == 1:
            return first
        return next((rank for rank in range(first, last) if self._folder(rank) == folder), None)

    def stored(self, rank: int) -> np.ndarray:
        """The map as it is stored, float16 [2, 5, 18, 18]."""
        position = int(self._positions[rank])
        # As a range: to read a list of positions, array_record looks at every chunk of the file.
        (record,) = self._reader.read(position, position + 1)
        return np.frombuffer(record, HALF).reshape(MAP_SHAPE)

    def names(self) -> Iterator[str]:
        """Name of every map by rank: a path with / and without an ending."""
        for rank in range(len(self)):
            yield os.path.join(self._folder(rank), os.fsdecode(self._stems[rank]))

    def _folder(self, rank: int) -> str:
        return self._folders[self._folder_numbers[rank]]


def flip_map(scores: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The map, each part [5, 18, 18], of the picture's mirror image."""
    return scores[..., ::-1], ids[..., ::-1]


def warp_map(
    scores: np.ndarray, ids: np.ndarray, operation: Operation, aspect: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """The map of the picture after an operation of RandAugment: the nearest cell, score 0 where the picture is filled.

    There the ids are those of the nearest cell at the border. Operations that move nothing change nothing.

    Args:
        scores: [5, 18, 18].
        ids: likewise.
        operation: what `apply_operation` does with the picture.
        aspect: width / height of the picture, which turns and shears in pixels; the map is square in any case.
    """
    if operation.name not in GEOMETRIC:
        return scores, ids
    # In units of the picture's height, as output -> input, like Pillow: x in 0..aspect, y in 0..1, at cell centres.
    y, x = np.meshgrid(*(np.arange(GRID) + 0.5,) * 2, indexing="ij")
    x, y, level = x * aspect / GRID, y / GRID, operation.level
    match operation.name:
        case "Rotate":
            cos, sin = math.cos(math.radians(level)), math.sin(math.radians(level))
            dx, dy = x - aspect / 2, y - 0.5
            x, y = cos * dx - sin * dy + aspect / 2, sin * dx + cos * dy + 0.5
        case "ShearX":
            x = x + level * y
        case "ShearY":
            y = y + level * x
        case "TranslateX":
            x = x + level * aspect
        case "TranslateY":
            y = y + level
        case _:
            raise ValueError(f"no warp for the RandAugment operation {operation.name!r}")
    column, row = np.floor(x / aspect * GRID).astype(np.int64), np.floor(y * GRID).astype(np.int64)
    inside = (column >= 0) & (column < GRID) & (row >= 0) & (row < GRID)
    column, row = column.clip(0, GRID - 1), row.clip(0, GRID - 1)
    return np.where(inside, scores[:, row, column], scores.dtype.type(0)), ids[:, row, column]


def map_name(picture_id: str) -> str:
    """The name of a picture's map: the picture's, without the ending."""
    name, ending = os.path.splitext(picture_id)
    return name if ending.lower() in PICTURE_ENDINGS else picture_id


def split_name(name: str) -> tuple[str, bytes]:
    """Folder and file name; maps are sorted by the latter."""
    folder, file = os.path.split(name)
    return folder, os.fsencode(file)


def _open(path: pathlib.Path) -> tuple[ArrayRecordReader, dict[str, Any], Mapping[str, np.ndarray]]:
    try:
        reader = ArrayRecordReader(str(path), "readahead_buffer_size:0,max_parallelism:0")
        last = reader.num_records() - 1
        (record,) = reader.read(last, last + 1)
        with np.load(io.BytesIO(record), allow_pickle=False) as archive:
            index = {name: archive[name] for name in archive.files}
        header = json.loads(index["header"].tobytes())
        found = header["format"], header["version"], header["grid"], header["top"]
    except (RuntimeError, ValueError, LookupError, TypeError, OSError, EOFError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ValueError(f"{path} is no file of label maps, or a damaged one ({reason}). {DOCS}") from error
    if found != (FORMAT, VERSION, GRID, TOP):
        raise ValueError(
            f"{path} holds {found[0]!r} version {found[1]}, {found[3]} classes on a {found[2]}x{found[2]} grid: this "
            f"version reads {FORMAT!r} version {VERSION}, {TOP} classes on a {GRID}x{GRID} grid. {DOCS}"
        )
    return reader, header, index
