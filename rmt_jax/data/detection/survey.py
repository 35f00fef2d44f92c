"""A whole split with boxes, read once before it is trained on: what is wrong with it, and what is in it."""

import collections
import concurrent.futures
import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from rmt_jax.data.decode import CorruptImageError
from rmt_jax.data.detection.annotations import AnnotationError, check_trainable, training_pictures
from rmt_jax.data.detection.reading import read_image, read_instances
from rmt_jax.data.detection.source import DetectionSource
from rmt_jax.data.detection.transforms import padded_size
from rmt_jax.data.detection_config import DetectionDataConfig
from rmt_jax.data.resize import rescaled_size

# COCO's limits of small and medium objects, in pixels.
_SMALL, _MEDIUM = 32**2, 96**2


@dataclasses.dataclass(frozen=True)
class Survey:
    """What a split holds.

    Attributes:
        objects: number of objects of each class, without crowds, int64 [classes].
        pictures: number of pictures that show each class, int64 [classes].
        crowds: number of boxes around crowds.
        sizes: number of small, medium and large objects, by COCO's limits.
        most: largest number of boxes in a picture.
        left_out: number of annotations that count for nothing, by reason.
        not_trained: number of pictures that are left out of training, by reason.
        shapes: number of pictures by the padded height and width that evaluation brings them to.
        problems: what is wrong with other pictures and annotations.
    """

    objects: np.ndarray
    pictures: np.ndarray
    crowds: int
    sizes: tuple[int, int, int]
    most: int
    left_out: Mapping[str, int]
    not_trained: Mapping[str, int]
    shapes: Mapping[tuple[int, int], int]
    problems: list[str]


def survey(
    source: DetectionSource, config: DetectionDataConfig, *, threads: int, advance: Callable[[int, int], None]
) -> Survey:
    """Read every record of a source.

    Args:
        source: the split.
        config: whether masks are read, and the scale of evaluation.
        threads: that decode.
        advance: told how many records are done, and of how many.
    """

    def read(index: int) -> str | None:
        example = source[index]
        try:
            read_image(example)
            read_instances(example, masks=config.masks)
        except (CorruptImageError, AnnotationError) as error:
            return str(error)
        return None

    problems = []
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for done, problem in enumerate(pool.map(read, range(len(source))), start=1):
            if problem is not None:
                problems.append(problem)
            advance(done, len(source))
    annotations = source.annotations
    pictures, _ = training_pictures(annotations)
    try:
        check_trainable(annotations, pictures, source.name, max_boxes=config.max_boxes, masks=config.masks)
    except AnnotationError as error:
        problems.append(str(error))
    return _count(source, config, problems)


def _count(source: DetectionSource, config: DetectionDataConfig, problems: list[str]) -> Survey:
    """What the annotations alone say."""
    annotations, classes = source.annotations, source.num_classes
    reasons = annotations.left_out()
    counting = ~np.any([*reasons.values()], axis=0)
    single = annotations.single
    areas = annotations.areas[single]
    shown = np.unique(np.stack([annotations.pictures[single], annotations.labels[single]]), axis=1)[1]
    shapes = collections.Counter(
        padded_size(rescaled_size(height, width, config.eval_scale)) for height, width in annotations.sizes.tolist()
    )
    left_out = {reason: int(marked.sum()) for reason, marked in reasons.items()}
    left_out["of pictures that are not in the data set"] = annotations.strangers
    return Survey(
        objects=np.bincount(annotations.labels[single], minlength=classes),
        pictures=np.bincount(shown, minlength=classes),
        crowds=int((counting & annotations.crowd).sum()),
        sizes=(
            int((areas < _SMALL).sum()),
            int(((areas >= _SMALL) & (areas < _MEDIUM)).sum()),
            int((areas >= _MEDIUM).sum()),
        ),
        most=int(annotations.box_counts().max()),
        left_out={reason: count for reason, count in left_out.items() if count},
        not_trained=training_pictures(annotations)[1],
        shapes=shapes,
        problems=problems,
    )
