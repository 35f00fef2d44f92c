"""Pictures in uncompressed tars, read in place: ImageNet as it is handed out, or a tar a class."""

import concurrent.futures
import logging
import os
from typing import NamedTuple

import numpy as np

from rmt_jax.data import imagenet
from rmt_jax.data.config import DataConfig
from rmt_jax.data.interface import PICTURE_ENDINGS, Example, ImageSource, check_same_classes, is_picture
from rmt_jax.data.tar_index import Member, TarIndex, cached_index, make_index, read_members

_HEADER_READERS = 8  # threads, for file systems where a read takes long


class _Layout(NamedTuple):
    """The tars of a split: one a class, ImageNet's tar of tars, or ImageNet's flat tar of validation pictures."""

    kind: str  # "classes", "train" or "validation"
    tars: list[str]
    index_file: str


class TarSource(ImageSource):
    """`DIR/SPLIT/CLASS.tar`, or `ILSVRC2012_img_train.tar` as train and `ILSVRC2012_img_val.tar` as validation or val.

    Classes of a tar each are numbered by name. ImageNet's two tars always have its 1,000 classes, also where pictures
    of only some are in them; the classes of its validation pictures are in TFDS's list.

    A picture is one open, one read, one close; nothing stays open, so copies for threads and processes cost nothing.
    """

    def __init__(self, config: DataConfig, split: str) -> None:
        if config.dir is None:
            raise ValueError(f'data.name="tar" needs data.dir. {_EXPECTED}')
        root = os.path.expanduser(config.dir)
        layout = _find_tars(root, split)
        if layout is None:
            raise FileNotFoundError(_not_found(root, split))
        class_names = _class_names(layout)
        for other in {config.train_split, config.eval_split} - {split}:
            other_layout = _find_tars(root, other)
            if other_layout is not None:
                check_same_classes(f"{root}, {split}", class_names, f"{root}, {other}", _class_names(other_layout))
        super().__init__(f"{os.path.basename(os.path.normpath(root))}/{split}", class_names)
        self._tars = layout.tars
        self._index = cached_index(layout.tars, lambda: _build(layout), layout.index_file)
        if self._index.ignored:
            logging.getLogger(__name__).warning(
                "%s: %d files in the tars are not pictures (%s) and are not read",
                self.name,
                self._index.ignored,
                ", ".join(PICTURE_ENDINGS),
            )
        labels = {name: label for label, name in enumerate(class_names)}
        by_list = layout.kind == "validation"
        self._labels = np.array(
            [
                labels[imagenet.validation_class(name) if by_list else name.partition("/")[0]]
                for name in map(os.fsdecode, self._index.name.tolist())
            ],
            np.int32,
        )

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> Example:
        name, path = self.id(index), self._tars[self._index.tar[index]]
        size = self.size(index)
        with open(path, "rb", buffering=0) as file:
            data = os.pread(file.fileno(), size, int(self._index.offset[index]))
        if len(data) != size:
            raise ValueError(f"{path} ends within {name}: it has changed since it was opened")
        return Example(data, int(self._labels[index]), name)

    def id(self, index: int) -> str:
        """The id of a picture, without reading it: CLASS/NAME, of a validation picture of ImageNet its name."""
        return os.fsdecode(self._index.name[index])

    def label(self, index: int) -> int:
        """The class of a picture, without reading it."""
        return int(self._labels[index])

    def size(self, index: int) -> int:
        """Bytes of an encoded picture, without reading it."""
        return int(self._index.size[index])


_EXPECTED = (
    f"Expected DIR/SPLIT/CLASS.tar, or ImageNet as it is handed out, {imagenet.TRAIN_TAR} as split train and "
    f"{imagenet.VALIDATION_TAR} as split validation or val in DIR, with data.dir=DIR and data.train_split, "
    "data.eval_split naming the splits"
)


def _not_found(root: str, split: str) -> str:
    if not os.path.isdir(root):
        return f"no folder {root}. {_EXPECTED}. For ImageNet put there: {imagenet.HOW_TO_DOWNLOAD}"
    folder = os.path.join(root, split)
    shown = folder if os.path.isdir(folder) else root
    names = sorted(os.listdir(shown))
    there = f"{shown} holds {', '.join(names[:10]) or 'nothing'}"
    if any(name.endswith((".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")) for name in names):
        there += " (compressed tars have no random access: decompress them once)"
    return f"no tars of split {split!r} in {root}: {there}. {_EXPECTED}. For ImageNet: {imagenet.HOW_TO_DOWNLOAD}"


def _find_tars(root: str, split: str) -> _Layout | None:
    """None where the split is not there."""
    folder = os.path.join(root, split)
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    classes = [os.path.join(folder, name) for name in names if name.endswith(".tar") and name[0] != "."]
    kind = {"train": "train", "validation": "validation", "val": "validation"}.get(split)
    shipped = os.path.join(root, imagenet.TRAIN_TAR if kind == "train" else imagenet.VALIDATION_TAR)
    if kind is None or not os.path.isfile(shipped):
        return _Layout("classes", classes, os.path.join(folder, "tars.index.npz")) if classes else None
    if classes:
        raise ValueError(f"split {split!r} is both {shipped} and the tars in {folder}: move one of them elsewhere")
    return _Layout(kind, [shipped], f"{shipped}.index.npz")


def _class_names(layout: _Layout) -> tuple[str, ...]:
    if layout.kind == "classes":
        return tuple(sorted(os.path.basename(path).removesuffix(".tar") for path in layout.tars))
    return imagenet.class_names()


def _build(layout: _Layout) -> TarIndex:
    """Read all headers."""
    if layout.kind == "validation":
        return _pictures([read_members(layout.tars[0])], layout.tars, [""])
    if layout.kind == "classes":
        classes = [os.path.basename(path).removesuffix(".tar") for path in layout.tars]
        with concurrent.futures.ThreadPoolExecutor(_HEADER_READERS) as threads:
            return _pictures(list(threads.map(read_members, layout.tars)), layout.tars, classes)
    (path,) = layout.tars
    inner = [member for member in read_members(path) if member.name.endswith(".tar")]
    classes = [member.name.removesuffix(".tar") for member in inner]
    unknown = sorted(set(classes) - set(imagenet.class_names()))
    if unknown or not inner:
        raise ValueError(
            f"{path} is not ImageNet's training tar, which holds a tar for each of its 1,000 classes "
            f"(n01440764.tar, ...): {f'{unknown[0]}.tar is none of them' if unknown else 'there is no tar in it'}"
        )
    with concurrent.futures.ThreadPoolExecutor(_HEADER_READERS) as threads:
        found = list(threads.map(read_members, [path] * len(inner), inner))
    return _pictures(found, [f"{path}, member {member.name}" for member in inner], classes, one_file=True)


def _pictures(found: list[list[Member]], tars: list[str], classes: list[str], *, one_file: bool = False) -> TarIndex:
    """The index of the pictures among the members of each tar, sorted by name, named CLASS/NAME."""
    pictures, ignored = [], 0
    for members, tar, name in zip(found, tars, classes, strict=True):
        kept = sorted(member for member in members if is_picture(member.name))
        ignored += len(members) - len(kept)
        if not kept:
            raise ValueError(f"{tar} holds no pictures ({', '.join(PICTURE_ENDINGS)}): {len(members)} files")
        if name:  # some tars hold the class folder
            kept = [m._replace(name=f"{name}/{m.name.removeprefix(f'{name}/')}") for m in kept]
        if len({member.name for member in kept}) < len(kept):
            raise ValueError(f"{tar} holds several pictures of one name: pack it again, with different names")
        pictures.append(kept)
    if one_file:
        pictures = [[member for kept in pictures for member in kept]]
    return make_index(pictures, ignored)
