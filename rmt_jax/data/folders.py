"""Pictures in a folder a class, with a folder a split or with a share of every class held out."""

import hashlib
import logging
import os

import numpy as np

from rmt_jax.data.config import DataConfig
from rmt_jax.data.interface import PICTURE_ENDINGS, Example, ImageSource, check_same_classes, is_picture


class FolderSource(ImageSource):
    """`DIR/SPLIT/CLASS/picture.jpg`, or `DIR/CLASS/picture.jpg` with `eval_fraction`; classes by order of their names.

    The other split of the configuration, where it is there, must have the same classes: labels are numbered by name, so
    one class more or less would shift the others silently.
    """

    def __init__(self, config: DataConfig, split: str) -> None:
        if config.dir is None:
            raise ValueError('data.name="folder" needs data.dir, the folder that holds DIR/SPLIT/CLASS/picture.jpg')
        root = os.path.expanduser(config.dir)
        # Only one of them is a split that can be asked for, whatever folders there are.
        if config.eval_fraction and split not in (config.train_split, config.eval_split):
            raise ValueError(
                f"split {split!r}: with data.eval_fraction it is data.train_split={config.train_split!r} or "
                f"data.eval_split={config.eval_split!r}"
            )
        self._folder = root if config.eval_fraction else os.path.join(root, split)
        class_names = _class_folders(self._folder, root, config)
        if not config.eval_fraction:
            for other in {config.train_split, config.eval_split} - {split}:
                other_folder = os.path.join(root, other)
                if os.path.isdir(other_folder):
                    other_names = _class_folders(other_folder, root, config)
                    check_same_classes(self._folder, class_names, other_folder, other_names)
        super().__init__(f"{os.path.basename(os.path.normpath(root))}/{split}", class_names)
        files, labels, ignored = [], [], []
        for label, name in enumerate(class_names):
            pictures, others = _list_pictures(os.path.join(self._folder, name), config)
            if config.eval_fraction:
                pictures = _side(pictures, name, self._folder, config.eval_fraction, split == config.eval_split)
            files += [f"{name}/{picture}" for picture in pictures]
            labels += [label] * len(pictures)
            ignored += [f"{name}/{other}" for other in others]
        if ignored:
            logging.getLogger(__name__).warning(
                "%s: %d entries are not pictures and are not read, the first is %s", self.name, len(ignored), ignored[0]
            )
        # Arrays and not lists: a million paths are copied to every worker process.
        self._files = np.array([os.fsencode(file) for file in files])
        self._labels = np.array(labels, np.int32)

    def __len__(self) -> int:
        return len(self._files)

    def id(self, index: int) -> str:
        """CLASS/NAME, without reading the picture."""
        return os.fsdecode(self._files[index])

    def __getitem__(self, index: int) -> Example:
        name = self.id(index)
        with open(os.path.join(self._folder, name), "rb") as file:
            return Example(file.read(), int(self._labels[index]), name)


def _class_folders(folder: str, root: str, config: DataConfig) -> tuple[str, ...]:
    if not os.path.isdir(folder):
        found = sorted(os.listdir(root)) if os.path.isdir(root) else None
        there = "which does not exist itself" if found is None else f"which holds {', '.join(found[:10]) or 'nothing'}"
        raise FileNotFoundError(
            f"no folder {folder} in {root}, {there}: expected DIR/SPLIT/CLASS/picture.jpg with data.dir=DIR and "
            f"data.train_split, data.eval_split naming the SPLIT folders (now {config.train_split!r}, "
            f"{config.eval_split!r}), or DIR/CLASS/picture.jpg with data.eval_fraction=0.1 to hold out a tenth"
        )
    # Hidden folders (.ipynb_checkpoints and the like) are not classes.
    names = tuple(sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != "."))
    if not names:
        raise ValueError(f"{folder} holds no class folders: expected one folder a class, {folder}/CLASS/picture.jpg")
    return names


def _list_pictures(folder: str, config: DataConfig) -> tuple[list[str], list[str]]:
    """Names in a class folder, sorted: pictures, and everything else that is not hidden."""
    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    pictures = [name for name in names if is_picture(name)]
    if not pictures:
        mend = "remove it, in every split, or fill it"
        if config.eval_fraction:
            mend = "with data.eval_fraction expected DIR/CLASS/picture.jpg, without splits; leave it out for DIR/SPLIT"
        raise ValueError(f"class folder {folder} holds no pictures ({', '.join(PICTURE_ENDINGS)}): {mend}")
    return pictures, [name for name in names if not is_picture(name)]


def _side(pictures: list[str], class_name: str, root: str, eval_fraction: float, evaluation: bool) -> list[str]:
    """The pictures of a class that are held out, or the others; at least one on each side.

    Those whose names hash to the smallest values are held out. So the order of a listing does not matter, and of the
    pictures that were there before, one more picture moves at most one.
    """
    if len(pictures) == 1:
        raise ValueError(
            f"class folder {os.path.join(root, class_name)} holds one picture: data.eval_fraction needs two or more in "
            "every class, one to train on and one to evaluate on"
        )
    count = min(max(1, round(len(pictures) * eval_fraction)), len(pictures) - 1)
    held_out = set(sorted(pictures, key=lambda name: _hash(f"{class_name}/{name}"))[:count])
    return [name for name in pictures if (name in held_out) == evaluation]


def _hash(name: str) -> bytes:
    return hashlib.sha256(os.fsencode(name)).digest()
