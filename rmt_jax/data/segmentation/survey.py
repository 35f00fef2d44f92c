"""A whole split with label maps, read once before it is trained on: what is wrong with it, and what is in it."""

import collections
import concurrent.futures
import dataclasses
from collections.abc import Callable

import numpy as np

from rmt_jax.data.config import SegmentationDataConfig
from rmt_jax.data.decode import CorruptImageError
from rmt_jax.data.interface import SegmentationSource
from rmt_jax.data.resize import rescaled_size
from rmt_jax.data.segmentation.labels import LabelMapError, read_example


@dataclasses.dataclass(frozen=True)
class Survey:
    """What a split holds.

    Attributes:
        pixels: number of pixels of each class, int64 [num_classes].
        pictures: number of pictures that show each class, int64 [num_classes].
        ignored: number of pixels without a class.
        shapes: number of pictures by the height and width that evaluation resizes them to.
        problems: what is wrong with the other pictures and label maps.
    """

    pixels: np.ndarray
    pictures: np.ndarray
    ignored: int
    shapes: dict[tuple[int, int], int]
    problems: list[str]


def survey(
    source: SegmentationSource, config: SegmentationDataConfig, *, threads: int, advance: Callable[[int, int], None]
) -> Survey:
    """Read every record of a source.

    Args:
        source: the split.
        config: how label maps are read, and the scale of evaluation.
        threads: that decode.
        advance: told how many records are done, and of how many.
    """

    def read(index: int) -> tuple[np.ndarray, tuple[int, int]] | str:
        try:
            _, labels = read_example(source[index], source.num_classes, reduced=config.reduce_zero_label)
        except (CorruptImageError, LabelMapError) as error:
            return str(error)
        height, width = labels.shape
        return np.bincount(labels.ravel(), minlength=256), rescaled_size(height, width, config.scale)

    counts, pictures, problems = np.zeros(256, np.int64), np.zeros(256, np.int64), []
    shapes: dict[tuple[int, int], int] = collections.Counter()
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for done, found in enumerate(pool.map(read, range(len(source))), start=1):
            if isinstance(found, str):
                problems.append(found)
            else:
                counts += found[0]
                pictures += found[0] > 0
                shapes[found[1]] += 1
            advance(done, len(source))
    classes = slice(source.num_classes)
    return Survey(counts[classes], pictures[classes], int(counts[classes.stop :].sum()), shapes, problems)
