"""How fast one core prepares training pictures, beside the same recipe as torchvision and timm prepare it.

Both see the same pictures with the same random draws, in one thread and in turn, so that a busy machine slows both.
"""

import dataclasses
import functools
import io
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice

import numpy as np
from PIL import Image

from rmt_jax.data.batches import Batch
from rmt_jax.data.benchmark_pipelines import Laps, Pipeline
from rmt_jax.data.config import DataConfig
from rmt_jax.data.interface import Example, ImageSource
from rmt_jax.data.label_maps import LabelMaps
from rmt_jax.data.order import TrainingOrder
from rmt_jax.data.pipeline import TrainLoader

SYNTHETIC_SIZE = 500, 375  # width and height of a usual ImageNet picture
SYNTHETIC_QUALITY = 90

_LOADER_BATCH = 32
_ENDLESS = 2**31 // _LOADER_BATCH  # batches


class SyntheticSource(ImageSource):
    """JPEGs of 500x375 pixels and quality 90 in memory, cut from scikit-learn's two photographs.

    As many as ImageNet has, one after the other from a few: Grain's shuffle of a small data set takes much longer.

    Args:
        count: different pictures.
    """

    def __init__(self, count: int = 64) -> None:
        # Imported here: worker processes load this module, and never need scikit-learn.
        from sklearn.datasets import load_sample_images

        super().__init__(f"{count} JPEGs of 500x375 from scikit-learn's photographs", ("china", "flower"))
        rng, photographs = np.random.default_rng(0), load_sample_images().images
        width, height = SYNTHETIC_SIZE
        self._pictures = []
        for index in range(count):
            photograph = photographs[index % 2]
            top = int(rng.integers(photograph.shape[0] - height + 1))
            left = int(rng.integers(photograph.shape[1] - width + 1))
            file = io.BytesIO()
            cut = Image.fromarray(photograph).crop((left, top, left + width, top + height))
            cut.save(file, "JPEG", quality=SYNTHETIC_QUALITY)
            self._pictures.append(file.getvalue())

    def __len__(self) -> int:
        return 1_281_167

    def __getitem__(self, index: int) -> Example:
        return Example(self._pictures[index % len(self._pictures)], index % 2, f"synthetic_{index}")


@dataclasses.dataclass(frozen=True)
class Timing:
    """What one picture takes in one thread, in milliseconds: medians over the blocks.

    Attributes:
        wall: by the clock.
        cpu: of the processor.
        stages: by the clock, in the order in which they come.
    """

    wall: float
    cpu: float
    stages: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class InputBenchmark:
    """What was measured.

    Attributes:
        source: name of the data set.
        image_bytes: mean size of an encoded picture.
        images: pictures in a block.
        ours: `TrainLoader` without workers and threads.
        baseline: the recipe as torchvision and timm write it.
        ratios: time of the baseline / time of ours, for each pair of blocks.
        workers: processes of the whole loader.
        threads: threads in each of them.
        loader_images_per_second: of the whole loader.
    """

    source: str
    image_bytes: float
    images: int
    ours: Timing
    baseline: Timing
    ratios: Sequence[float]
    workers: int
    threads: int
    loader_images_per_second: float

    @property
    def ratio(self) -> float:
        """The median of `ratios`."""
        return statistics.median(self.ratios)


def input_benchmark(
    source: ImageSource, config: DataConfig, *, erasing: float, seed: int = 0, images: int = 128, blocks: int = 7
) -> InputBenchmark:
    """Measure; takes about images * blocks / 100 seconds for pictures of ImageNet's size.

    Args:
        source: the pictures; each block's are read once before, so that they lie in memory.
        config: the recipe.
        erasing: probability of random erasing, which the baseline does here and this package on the device.
        seed: of the draws.
        images: pictures in a block, one batch; at most as many as there are.
        blocks: pairs of blocks.

    Raises:
        ValueError, FileNotFoundError: see `TrainLoader`.
    """
    images = min(images, len(source))
    single = dataclasses.replace(config, num_workers=0, num_threads=0, repeat_replicas=1)
    loader = TrainLoader(source, single, batch_size=images, seed=seed)
    order = TrainingOrder(len(source), images, seed=seed, repeats=config.repeats)
    maps = LabelMaps(config.token_labels.file) if config.token_labels.file else None
    pipeline = Pipeline(source, order, config, seed, images, maps, erasing)
    # Asked for at once: to start it anew for each block is no part of training.
    batches = loader.batches(0, blocks + 1)
    measured: dict[str, list[_Block]] = {"whole": [], "staged": [], "baseline": []}
    for step in range(blocks + 1):
        pipeline.read(step)
        runs: dict[str, Callable[[Laps], object]] = {
            "whole": lambda laps: next(batches),
            "staged": functools.partial(pipeline.ours, step),
            "baseline": functools.partial(pipeline.baseline, step),
        }
        for name in runs if step % 2 else reversed(runs):
            done = _measure(runs[name])
            if step:  # the first warms up
                measured[name].append(done)
    batches.close()
    pairs = zip(measured["baseline"], measured["whole"], strict=True)
    workers = min(config.num_workers, cores())
    return InputBenchmark(
        source=source.name,
        image_bytes=pipeline.read(blocks) / images,
        images=images,
        ours=_timing(measured["whole"], measured["staged"], images),
        baseline=_timing(measured["baseline"], measured["baseline"], images),
        ratios=[theirs.wall / ours.wall for theirs, ours in pairs],
        workers=workers,
        threads=config.num_threads,
        loader_images_per_second=loader_speed(source, dataclasses.replace(config, num_workers=workers), seed),
    )


@dataclasses.dataclass(frozen=True)
class _Block:
    wall: float
    cpu: float
    stages: dict[str, float]


def _measure(run: Callable[[Laps], object]) -> _Block:
    wall, cpu, laps = time.perf_counter(), time.process_time(), Laps()
    run(laps)
    return _Block(time.perf_counter() - wall, time.process_time() - cpu, laps.seconds)


def _timing(totals: Sequence[_Block], staged: Sequence[_Block], images: int) -> Timing:
    per_image = 1000 / images
    return Timing(
        wall=statistics.median(block.wall for block in totals) * per_image,
        cpu=statistics.median(block.cpu for block in totals) * per_image,
        stages={
            stage: statistics.median(block.stages[stage] for block in staged) * per_image for stage in staged[0].stages
        },
    )


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def loader_speed(source: ImageSource, config: DataConfig, seed: int = 0) -> float:
    """Pictures per second of `TrainLoader` as `config` says, with nobody else at work.

    The loader is stopped in the middle of its work: batches begun before the first that counts and those begun before
    the end make up for each other.
    """
    batch_size = min(_LOADER_BATCH, len(source))
    loader = TrainLoader(source, dataclasses.replace(config, repeat_replicas=1), batch_size=batch_size, seed=seed)
    in_flight = max(1, config.num_workers) * max(1, config.num_threads)
    batches = loader.batches(0, _ENDLESS)
    try:
        _take(batches, in_flight)
        start = time.perf_counter()
        _take(batches, 2 * in_flight)
        return 2 * in_flight * batch_size / (time.perf_counter() - start)
    finally:
        batches.close()


def _take(batches: Iterator[Batch], count: int) -> None:
    for _ in islice(batches, count):
        pass
