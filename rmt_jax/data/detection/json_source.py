"""A folder of pictures and a json of COCO's instances: COCO itself, and any data set in its form."""

import itertools
import os
from collections import defaultdict

from rmt_jax.data.config import DataConfig
from rmt_jax.data.detection.annotations import AnnotationError, Annotations
from rmt_jax.data.detection.coco_json import read_coco
from rmt_jax.data.detection.source import DetectionSource
from rmt_jax.data.detection.stored import stored_annotations

URL = "https://cocodataset.org/#download"


class CocoJsonSource(DetectionSource):
    """The pictures of a json, in its order.

    What the json says is kept in JSON.arrays beside it, which is made anew when the json changes; where it cannot be
    written, in `$XDG_CACHE_HOME/rmt_jax` (`~/.cache/rmt_jax`).

    Args:
        json: path of the annotations.
        images: the folder that its file names start from.
        name: for messages and summaries.

    Raises:
        FileNotFoundError: a picture is not there.
        AnnotationError: see `read_coco`.
    """

    def __init__(self, json: str, images: str, name: str) -> None:
        annotations = _annotations(json)
        _check_pictures(annotations, json, images)
        super().__init__(name, annotations)
        self._images = images

    def image(self, index: int) -> bytes:
        """The picture's file."""
        with open(os.path.join(self._images, self.id(index)), "rb") as file:
            return file.read()


def open_coco_json(config: DataConfig, split: str) -> CocoJsonSource:
    """`DIR/annotations/instances_SPLIT.json` with `DIR/SPLIT`, or what `data.detection` names.

    Raises:
        FileNotFoundError: the json is not there; see `CocoJsonSource`.
        ValueError: data.dir is not set.
        AnnotationError: see `read_coco`; the other split of a training run has other classes.
    """
    if config.dir is None:
        raise ValueError(
            f'data.name="{config.name}" needs data.dir, the folder with annotations/instances_SPLIT.json and SPLIT/ '
            f"(COCO's are at {URL})"
        )
    root = os.path.expanduser(config.dir)
    json, images = (
        os.path.join(root, pattern.format(split=split))
        for pattern in (config.detection.annotations, config.detection.images)
    )
    if not os.path.isfile(json):
        raise FileNotFoundError(
            f"no annotations {json}: {_what_is_there(json, root)}. Expected data.dir=DIR with "
            f"DIR/{config.detection.annotations} and the pictures in DIR/{config.detection.images}; other places are "
            "set with data.detection.annotations and data.detection.images, in which {split} is data.train_split or "
            "data.eval_split"
        )
    source = CocoJsonSource(json, images, f"{os.path.basename(os.path.normpath(root))}/{split}")
    if split == config.train_split:
        _check_same_classes(
            source, json, os.path.join(root, config.detection.annotations.format(split=config.eval_split))
        )
    return source


def _annotations(json: str) -> Annotations:
    state = os.stat(json)
    key = [os.path.basename(json), state.st_size, state.st_mtime_ns]
    return stored_annotations(key, lambda: read_coco(json), f"{json}.arrays")


def _check_same_classes(source: CocoJsonSource, json: str, other: str) -> None:
    """Labels are numbered by the categories' ids: a category more or in another place would shift them in silence."""
    if not os.path.isfile(other):
        return
    pairs = itertools.zip_longest(source.class_names, _annotations(other).class_names)
    for label, (ours, theirs) in enumerate(pairs):
        if ours != theirs:
            first, second = ("nothing" if name is None else repr(name) for name in (ours, theirs))
            raise AnnotationError(
                f"{json} and {other} must have the same categories in the same order of their ids, but label {label} "
                f"is {first} in the one and {second} in the other"
            )


def _check_pictures(annotations: Annotations, json: str, images: str) -> None:
    """All at once, by listing folders: a question for each file takes minutes on a network drive."""
    if not len(annotations):
        raise AnnotationError(f"{json} names no pictures")
    folders: dict[str, set[str]] = defaultdict(set)
    for name in annotations.file_names.tolist():
        folder, _, last = os.fsdecode(name).rpartition("/")
        folders[folder].add(last)
    missing = []
    for folder, names in sorted(folders.items()):
        where = os.path.join(images, folder)
        there = set(os.listdir(where)) if os.path.isdir(where) else set()
        missing += [os.path.join(where, name) for name in sorted(names - there)]
    if missing:
        raise FileNotFoundError(
            f"{len(missing):,} of the {len(annotations):,} pictures that {json} names are not there, the first is "
            f"{missing[0]}: set data.detection.images to the folder of the pictures, below data.dir, with {{split}} "
            "for the split"
        )


def _what_is_there(path: str, root: str) -> str:
    """What the nearest folder holds in which something was looked for."""
    parent = os.path.dirname(path)
    while not os.path.isdir(parent) and len(parent) > len(root):
        parent = os.path.dirname(parent)
    if not os.path.isdir(parent):
        return f"{root} does not exist itself"
    return f"{parent} holds {', '.join(sorted(os.listdir(parent))[:10]) or 'nothing'}"
