"""ImageNet's two tars as the TFDS data set imagenet2012 in array_record, without TensorFlow.

The order is that of TFDS's own builder, so that a slice such as `train[:10%]` has the same pictures. That builder needs
TensorFlow, and starts from the beginning when it is interrupted.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import re
import shutil
from collections.abc import Iterator
from typing import IO

import tensorflow_datasets as tfds

from rmt_jax.data import imagenet
from rmt_jax.data.config import DataConfig
from rmt_jax.data.imagenet_shards import Progress, Shard, split_into_shards, write_shards
from rmt_jax.data.tars import TarSource

SPLITS = {"train": imagenet.TRAIN_TAR, "validation": imagenet.VALIDATION_TAR}

_TRAIN_NAME = re.compile(r"(n\d{8})/\1_\d+\.JPEG")
_RECORD_OVERHEAD = 512  # bytes, more than a record has beside its picture


def prepare_imagenet(
    tars: str, data_dir: str | None = None, *, splits: tuple[str, ...] = ("train", "validation"), progress: Progress
) -> pathlib.Path:
    """Write imagenet2012 from the tars in a folder; returns its directory, complete under its name or not there.

    Interrupted by whatever means, the same call goes on after the last complete file. CMYK pictures and those that are
    no JPEG become RGB JPEG of quality 100, as TFDS does with the 23 that it knows of; all other bytes are kept.

    Args:
        tars: the folder with the two tars. They may hold fewer classes and pictures.
        data_dir: TFDS data directory, or None for TFDS's default.
        splits: which of "train" and "validation" to prepare.
        progress: hears what happens.

    Raises:
        FileNotFoundError: a tar is missing.
        FileExistsError: the data set is there without one of `splits`, or something else is in its place.
        ValueError: a tar is truncated or damaged, or its members are not those of ImageNet.
        OSError: the disk is too small, or another process is preparing the same data set.
    """
    tars = os.path.expanduser(tars)
    builder = tfds.builder(
        "imagenet2012", data_dir=data_dir and os.path.expanduser(data_dir), file_format="array_record"
    )
    final = pathlib.Path(builder.data_path)
    if _is_there(final, builder, splits):
        progress.say(f"already prepared: {final} ({_counts(builder)}). Remove it to prepare it again.")
        return final
    sources = _open_tars(tars, splits, progress)
    incomplete = final.with_name(f"incomplete.{final.name}")
    incomplete.mkdir(parents=True, exist_ok=True)
    with _claimed(incomplete.with_name(f"{incomplete.name}.plan")) as plan_file:
        _go_on_or_start(plan_file, incomplete, _plan(tars, splits), progress)
        shards = [shard for split, source in sources.items() for shard in split_into_shards(split, source, incomplete)]
        _check_space(shards, sources, incomplete, progress)
        fixed = write_shards(shards, sources, builder.info.features, progress)
        _write_info(builder, incomplete, shards, tars)
        incomplete.rename(final)
        os.remove(plan_file.name)
    for what, names in sorted(fixed.items()):
        progress.say(f"{len(names)} {what}: {', '.join(sorted(names)[:3])}{', ...' if len(names) > 3 else ''}")
    progress.say(f"prepared {final} ({_counts(builder)})")
    return final


def _is_there(final: pathlib.Path, builder: tfds.core.DatasetBuilder, splits: tuple[str, ...]) -> bool:
    if not final.exists():
        return False
    if not (final / "dataset_info.json").exists():
        raise FileExistsError(f"{final} is there, without dataset_info.json: remove it to prepare the data set")
    missing = [split for split in splits if split not in builder.info.splits]
    if missing:
        raise FileExistsError(
            f"{final} is prepared without the split {missing[0]} ({_counts(builder)}): remove it to prepare both"
        )
    return True


def _counts(builder: tfds.core.DatasetBuilder) -> str:
    return ", ".join(f"{name}: {split.num_examples:,} pictures" for name, split in builder.info.splits.items())


def _open_tars(tars: str, splits: tuple[str, ...], progress: Progress) -> dict[str, TarSource]:
    """The tars' pictures, after all checks that need no reading of every picture."""
    missing = [SPLITS[split] for split in splits if not os.path.isfile(os.path.join(tars, SPLITS[split]))]
    if missing:
        raise FileNotFoundError(f"no {' and no '.join(missing)} in {tars}. Download {imagenet.HOW_TO_DOWNLOAD}")
    sources = {}
    for split in splits:
        tar = SPLITS[split]
        size = os.path.getsize(os.path.join(tars, tar))
        progress.say(f"{tar}: {size:,} bytes, reading its headers")
        source = TarSource(DataConfig("tar", dir=tars), split)
        if split == "train":
            for index in range(len(source)):
                if not _TRAIN_NAME.fullmatch(source.id(index)):
                    raise ValueError(f"{tar}: {source.id(index)} is no name of ImageNet's, like n01440764_10026.JPEG")
        progress.say(_describe(tar, source, size))
        sources[split] = source
    return sources


def _describe(tar: str, source: TarSource, size: int) -> str:
    count, classes = len(source), len({source.label(index) for index in range(len(source))})
    words = f"{tar}: {count:,} pictures of {classes:,} classes"
    if (count, size) == (imagenet.PICTURES[tar], imagenet.TAR_SIZES[tar]):
        return f"{words}, as handed out"
    return (
        f"{words}. This is not the whole of ImageNet's {imagenet.PICTURES[tar]:,} pictures in "
        f"{imagenet.TAR_SIZES[tar]:,} bytes: the data set has what is here"
    )


@contextlib.contextmanager
def _claimed(path: pathlib.Path) -> Iterator[IO[str]]:
    """The plan's file, locked; the lock ends with the process, however that ends."""
    with open(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(f"another process is preparing the same data set: {path} is locked") from error
        yield file


def _plan(tars: str, splits: tuple[str, ...]) -> str:
    """What complete files depend on: files of another plan are not used."""
    states = {split: os.stat(os.path.join(tars, SPLITS[split])) for split in splits}
    return json.dumps({split: [state.st_size, state.st_mtime_ns] for split, state in states.items()})


def _go_on_or_start(plan_file: IO[str], incomplete: pathlib.Path, plan: str, progress: Progress) -> None:
    """Keep the files of pictures, or remove everything where the tars have changed since.

    A file that is half written has another name, and is written over.
    """
    plan_file.seek(0)
    same, found = plan_file.read() == plan, list(incomplete.iterdir())
    for file in found:
        if not same or ".array_record-" not in file.name:
            file.unlink()
    if not same:
        if found:
            progress.say("other tars than those of the interrupted preparation: starting again")
        plan_file.truncate(0)
        plan_file.write(plan)
        plan_file.flush()


def _check_space(shards: list[Shard], sources: dict[str, TarSource], folder: pathlib.Path, progress: Progress) -> None:
    left = [shard for shard in shards if not shard.path.exists()]
    needed = sum(sources[s.split].size(int(index)) + _RECORD_OVERHEAD for s in left for index in s.pictures)
    free = shutil.disk_usage(folder).free
    progress.say(f"needs {needed / 1e9:,.2f} GB in {folder.parent}, {free / 1e9:,.2f} GB are free")
    if needed > free:
        raise OSError(f"{folder.parent} has {free / 1e9:,.2f} GB free, and {needed / 1e9:,.2f} GB are needed")
    if len(left) < len(shards):
        progress.say(f"going on with an interrupted preparation: {len(shards) - len(left)} of {len(shards)} files done")


def _write_info(builder: tfds.core.DatasetBuilder, folder: pathlib.Path, shards: list[Shard], tars: str) -> None:
    """The files that make shards a data set, the last one last."""
    infos = []
    for split in dict.fromkeys(shard.split for shard in shards):
        own = [shard for shard in shards if shard.split == split]
        infos.append(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[len(shard.pictures) for shard in own],
                num_bytes=sum(shard.path.stat().st_size for shard in own),
            )
        )
    builder.info.set_splits(tfds.core.splits.SplitDict(infos))
    builder.info.download_size = sum(os.path.getsize(os.path.join(tars, SPLITS[info.name])) for info in infos)
    builder.info.write_to_directory(folder)
