"""Label maps between the published form, a tree of PyTorch files with one for each picture, and our single file."""

import os
import pathlib
import shutil
import uuid
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from rmt_jax.convert.torch_file import read_torch, require_torch
from rmt_jax.data.label_maps import LabelMaps
from rmt_jax.data.label_writer import SHOWN, LabelMapWriter, map_problem

ENDING = ".pt"


class Tree(NamedTuple):
    """The files below a folder.

    Attributes:
        maps: paths of the .pt files relative to the folder, with / between parts, sorted.
        others: number of files with other endings, which are not read.
    """

    maps: list[str]
    others: int


def find_maps(folder: pathlib.Path) -> Tree:
    """The label maps of a tree, by name; nothing is read. Hidden files and folders do not count.

    Raises:
        ValueError: there is none.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: expected the unpacked tree of label maps, FOLDER/CLASS/PICTURE.pt.")
    found, others = [], 0
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        prefix = "" if parent == str(folder) else os.path.relpath(parent, folder) + os.sep
        names = sorted(name for name in files if not name.startswith("."))
        found += [prefix + name for name in names if name.endswith(ENDING)]
        others += sum(not name.endswith(ENDING) for name in names)
    if not found:
        raise ValueError(
            f"{folder} holds no {ENDING} files: expected the unpacked tree of label maps, FOLDER/CLASS/PICTURE.pt."
        )
    return Tree(found, others)


def pack(
    folder: pathlib.Path, maps: list[str], file: pathlib.Path, *, advance: Callable[[int], object] = lambda n: None
) -> None:
    """Write the maps of a tree to one file, bit for bit.

    Args:
        folder: the tree.
        maps: of `find_maps`.
        file: the destination, complete at the end or as it was before.
        advance: called with the number of maps just read.

    Raises:
        ValueError: a map is broken; all are looked at, the number and the first ones are named.
        ImportError: no PyTorch.
    """
    require_torch(f"Reading {folder}")
    broken, first_broken = 0, []
    with LabelMapWriter(file, {"made": "rmt labels pack", "tree": folder.absolute().name}) as writer:
        for path in maps:
            label_map, problem = _read(folder / path)
            if problem:
                broken += 1
                first_broken += [f"{path}: {problem}"] if broken <= SHOWN else []
            elif not broken:
                writer.add(path.removesuffix(ENDING), label_map)
            advance(1)
        if broken:
            raise ValueError(
                f"{broken} of {len(maps)} label maps in {folder} are broken, so nothing was written:\n  "
                + "\n  ".join(first_broken + ["..."] * (broken > SHOWN))
                + "\nUnpack or download them again, or remove them."
            )


def unpack(maps: LabelMaps, folder: pathlib.Path, *, advance: Callable[[int], object] = lambda n: None) -> None:
    """Write every map to a PyTorch file of its own, as they are published; the exact way back of `pack`.

    Args:
        maps: an open file.
        folder: the destination, which must not exist or be empty; it is filled under another name and then renamed.
        advance: called with the number of maps just written.

    Raises:
        FileExistsError: the folder holds something.
        ValueError: a map's name leads out of the folder.
        ImportError: no PyTorch.
    """
    require_torch(f"Writing {folder}")
    import torch

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and is no empty folder: give another one.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        for rank, name in enumerate(maps.names()):
            path = pathlib.PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts:
                raise ValueError(f"{maps.path} holds a map named {name!r}, which leads out of a folder: not unpacked.")
            target = partial / f"{name}{ENDING}"
            target.parent.mkdir(parents=True, exist_ok=True)
            torch.save(torch.from_numpy(maps.stored(rank).astype(np.float16)), target)
            advance(1)
        os.replace(partial, folder)  # an empty folder gives way
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _read(path: pathlib.Path) -> tuple[np.ndarray, str]:
    """The map in a file, and what is wrong with it."""
    try:
        content = read_torch(path)
    except (ValueError, OSError) as error:
        return np.empty(0), str(error)
    return content, map_problem(content)
