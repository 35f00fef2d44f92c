"""Records of imagenet2012, written to array_record files of which each is complete under its name or not there."""

import collections
import concurrent.futures
import dataclasses
import hashlib
import io
import itertools
import os
import pathlib

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from rmt_jax.data.decode import CorruptImageError, decode
from rmt_jax.data.tars import TarSource

_MIN_SHARD_BYTES = 64 * 2**20
_THREADS = 4


class Progress:
    """What a long preparation reports; this one is silent."""

    def say(self, line: str) -> None:
        """A line to read once."""

    def advance(self, done: int, total: int) -> None:
        """Pictures that are written, of all that there are."""


@dataclasses.dataclass(frozen=True)
class Shard:
    """A file of the data set: which pictures of which tar it holds, in their order."""

    split: str
    path: pathlib.Path
    pictures: np.ndarray


def split_into_shards(split: str, source: TarSource, folder: pathlib.Path) -> list[Shard]:
    """The files of a split. Order and file sizes are TFDS's: by MD5 of split and name, of 64 MiB and more."""
    keys = [hashlib.md5(f"{split}{_file_name(source.id(index))}".encode()).digest() for index in range(len(source))]
    order = np.array(sorted(range(len(source)), key=keys.__getitem__))
    total = sum(source.size(index) for index in range(len(source)))
    count = next(n for n in (2**power for power in range(10, -1, -1)) if n == 1 or n <= total // _MIN_SHARD_BYTES)
    bounds = [round(len(source) * shard / count) for shard in range(count + 1)]
    return [
        Shard(split, folder / f"imagenet2012-{split}.array_record-{shard:05d}-of-{count:05d}", order[start:stop])
        for shard, (start, stop) in enumerate(itertools.pairwise(bounds))
    ]


def _file_name(picture_id: str) -> str:
    return picture_id.rpartition("/")[2]


def write_shards(
    shards: list[Shard],
    sources: dict[str, TarSource],
    features: tfds.features.FeaturesDict,
    progress: Progress,
) -> dict[str, list[str]]:
    """Write what is missing, a file in each thread; returns the names of the pictures that were changed, by reason."""
    total = sum(len(shard.pictures) for shard in shards)
    left = [shard for shard in shards if not shard.path.exists()]
    done = total - sum(len(shard.pictures) for shard in left)
    fixed: dict[str, list[str]] = collections.defaultdict(list)
    progress.advance(done, total)
    threads = concurrent.futures.ThreadPoolExecutor(_THREADS)
    try:
        jobs = [threads.submit(_write_shard, shard, sources[shard.split], features) for shard in left]
        for job in concurrent.futures.as_completed(jobs):
            count, reasons = job.result()
            done += count
            progress.advance(done, total)
            for reason, name in reasons:
                fixed[reason].append(name)
    finally:
        threads.shutdown(cancel_futures=True)
    return fixed


def _write_shard(
    shard: Shard, source: TarSource, features: tfds.features.FeaturesDict
) -> tuple[int, list[tuple[str, str]]]:
    serializer = tfds.core.ExampleSerializer(features.get_serialized_info())
    temporary, fixed = shard.path.with_name(f"{shard.path.name}.tmp"), []
    writer = ArrayRecordWriter(str(temporary), "group_size:1")  # TFDS's own option: every record by itself
    try:
        for index in shard.pictures.tolist():
            example = source[index]
            image, reason = as_rgb_jpeg(example.image)
            if reason:
                fixed.append((reason, example.id))
            record = {
                "image": io.BytesIO(image),
                "label": source.class_names[example.label],
                "file_name": _file_name(example.id),
            }
            writer.write(serializer.serialize_example(features.encode_example(record)))
    finally:
        writer.close()
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())  # a name must not outlive a power cut without its content
    temporary.rename(shard.path)
    return len(shard.pictures), fixed


def as_rgb_jpeg(data: bytes) -> tuple[bytes, str]:
    """A picture's bytes as they are stored, and what was changed, or "".

    Source of the rule: TFDS's builder of imagenet2012, which encodes with quality 100 and halved chroma.
    """
    try:
        image = Image.open(io.BytesIO(data))
        if image.format in ("JPEG", "MPO") and image.mode != "CMYK":
            return data, ""
        decoded = decode(data, "")
    except (OSError, SyntaxError, Image.DecompressionBombError, CorruptImageError):
        return data, "pictures cannot be read and are stored as they are"
    encoded = io.BytesIO()
    decoded.save(encoded, "JPEG", quality=100, subsampling="4:2:0")
    return encoded.getvalue(), "CMYK pictures became RGB" if image.mode == "CMYK" else f"{image.format} became JPEG"
