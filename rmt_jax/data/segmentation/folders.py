"""Pictures in one folder and their label maps in another, under the same names: ADE20K's own, and any other."""

import logging
import os

import numpy as np

from rmt_jax.data.config import DataConfig
from rmt_jax.data.decode import picture_size
from rmt_jax.data.interface import PICTURE_ENDINGS, SegmentationExample, SegmentationSource, is_picture
from rmt_jax.data.segmentation import ade20k
from rmt_jax.data.segmentation.classes import numbered

_CLASSES_FILE = "classes.txt"
_ADE20K_FOLDER = "ADEChallengeData2016"


class LabelFolderSource(SegmentationSource):
    """`DIR/images/SPLIT/NAME.jpg` with `DIR/LABELS/SPLIT/NAME.png`, in the order of the names.

    Args:
        root: DIR.
        split: SPLIT.
        labels: LABELS, the name of that folder.
        class_names: of the classes that the label maps hold, after `data.segmentation.reduce_zero_label`.

    Raises:
        FileNotFoundError: a folder is not there, or the label map of a picture.
        ValueError: there are no pictures.
    """

    def __init__(self, root: str, split: str, labels: str, class_names: tuple[str, ...]) -> None:
        super().__init__(f"{os.path.basename(os.path.normpath(root))}/{split}", class_names)
        self._images, self._labels = (os.path.join(root, folder, split) for folder in ("images", labels))
        for folder in (self._images, self._labels):
            _check_folder(folder, root, labels)
        there = sorted(name for name in os.listdir(self._images) if not name.startswith("."))
        names = [name for name in there if is_picture(name)]
        if not names:
            raise ValueError(f"{self._images} holds no pictures ({', '.join(PICTURE_ENDINGS)})")
        maps = {name for name in os.listdir(self._labels) if not name.startswith(".")}
        missing = [name for name in names if _map_name(name) not in maps]
        if missing:
            raise FileNotFoundError(
                f"{len(missing)} of the {len(names):,} pictures in {self._images} have no label map, the first is "
                f"{missing[0]}: expected {os.path.join(self._labels, _map_name(missing[0]))}. Add the label maps, or "
                "remove the pictures"
            )
        unread = [name for name in there if not is_picture(name)]
        unread += sorted(maps - {_map_name(name) for name in names})
        if unread:
            logging.getLogger(__name__).warning(
                "%s: %d files are neither a picture nor the label map of one, the first is %s",
                self.name,
                len(unread),
                unread[0],
            )
        # An array and not a list: it is copied to every worker process.
        self._names = np.array([os.fsencode(name) for name in names])

    def __len__(self) -> int:
        return len(self._names)

    def id(self, index: int) -> str:
        """The picture's file name."""
        return os.fsdecode(self._names[index])

    def __getitem__(self, index: int) -> SegmentationExample:
        name = self.id(index)
        with (
            open(os.path.join(self._images, name), "rb") as image,
            open(os.path.join(self._labels, _map_name(name)), "rb") as label_map,
        ):
            return SegmentationExample(image.read(), label_map.read(), name)

    def size(self, index: int) -> tuple[int, int]:
        """Height and width; reads no more of the file than its header."""
        name = self.id(index)
        with open(os.path.join(self._images, name), "rb") as image:
            return picture_size(image, name)


def open_label_folder(config: DataConfig, split: str) -> LabelFolderSource:
    """`DIR/images/SPLIT` with `DIR/labels/SPLIT` and, with a class name a line, `DIR/classes.txt`.

    Raises:
        FileNotFoundError, ValueError: see `LabelFolderSource`; nothing says how many classes there are.
    """
    root = _root(config, "the folder with images/SPLIT/NAME.jpg and labels/SPLIT/NAME.png")
    names = _read_names(os.path.join(root, _CLASSES_FILE))
    if not names and not config.segmentation.num_classes:
        raise ValueError(
            f"nothing says how many classes {root} has: write {os.path.join(root, _CLASSES_FILE)} with the name of a "
            "class a line, or set data.segmentation.num_classes"
        )
    return LabelFolderSource(root, split, "labels", names or numbered(config.segmentation.num_classes))


def open_ade20k(config: DataConfig, split: str) -> LabelFolderSource:
    """ADE20K as the scene parsing challenge of 2016 hands it out, or the folder that it was unpacked in.

    Raises:
        FileNotFoundError, ValueError: see `LabelFolderSource`; label 0 is not taken away.
    """
    root = _root(config, f"{_ADE20K_FOLDER}, unpacked from {ade20k.URL}")
    ade20k.check_reduced(config)
    if os.path.isdir(os.path.join(root, _ADE20K_FOLDER)):
        root = os.path.join(root, _ADE20K_FOLDER)
    return LabelFolderSource(root, split, "annotations", ade20k.CLASS_NAMES)


def _root(config: DataConfig, what: str) -> str:
    if config.dir is None:
        raise ValueError(f'data.name="{config.name}" needs data.dir, {what}')
    return os.path.expanduser(config.dir)


def _check_folder(folder: str, root: str, labels: str) -> None:
    if os.path.isdir(folder):
        return
    parent = os.path.dirname(folder)
    while parent != root and not os.path.isdir(parent):
        parent = os.path.dirname(parent)
    found = ", ".join(sorted(os.listdir(parent))[:10]) or "nothing" if os.path.isdir(parent) else None
    there = f"{parent} holds {found}" if found is not None else f"{root} does not exist itself"
    raise FileNotFoundError(
        f"no folder {folder}: {there}. Expected DIR/images/SPLIT/NAME.jpg and DIR/{labels}/SPLIT/NAME.png with "
        "data.dir=DIR and data.train_split, data.eval_split naming the SPLIT folders"
    )


def _map_name(picture: str) -> str:
    return os.path.splitext(picture)[0] + ".png"


def _read_names(path: str) -> tuple[str, ...]:
    """The lines of a file that are not empty; none where there is no file."""
    if not os.path.exists(path):
        return ()
    with open(path, encoding="utf-8") as file:
        return tuple(line.strip() for line in file if line.strip())
