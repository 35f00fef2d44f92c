"""Checks of a machine, a data set and a workdir before a long run: what `rmt doctor` does. Nothing is changed."""

import importlib.metadata
import json
import os
import pathlib
import platform
import re
import shutil
from collections.abc import Generator, Iterator
from typing import Literal, NamedTuple

import jax
import numpy as np

from rmt_jax.convert import checkpoint_folder, class_differences, find_damage, name_some
from rmt_jax.data.decode import CorruptImageError, decode
from rmt_jax.data.interface import ImageSource
from rmt_jax.training.chips import find_devices
from rmt_jax.training.config import Config
from rmt_jax.training.disk import check_space, checkpoint_size, describe_size, free_space
from rmt_jax.training.kinds import kind_of
from rmt_jax.training.metrics import read_metrics
from rmt_jax.training.setup import prepare
from rmt_jax.training.workdir import open_workdir

OPTIONAL = ("libtpu",)
NAMED = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "simplejpeg")
PICTURES = 100  # of each split that are read and decoded
LEAST_DISK, LEAST_MEMORY = 10**9, 2 * 2**30

_BOUND = re.compile(r"^([A-Za-z0-9._-]+)\s*>=\s*([0-9.]+)")


class Finding(NamedTuple):
    """What a check has found.

    Attributes:
        level: "problem" is what a run would fail on.
        what: was found.
        mend: how, empty where there is nothing to mend.
    """

    level: Literal["ok", "warning", "problem"]
    what: str
    mend: str = ""

    def __str__(self) -> str:
        return f"{self.level}: {self.what}" + (f"; {self.mend}" if self.mend else "")


def check_versions(requirements: list[str] | None = None) -> Iterator[Finding]:
    """Python and the packages; requirements: "NAME>=VERSION", by default this package's own."""
    if requirements is None:
        requirements = importlib.metadata.requires("rmt-jax") or []
    bounds = {match[1]: match[2] for match in map(_BOUND.match, requirements) if match and "extra" not in match.string}
    found = {name: _version(name) for name in dict.fromkeys([*bounds, *NAMED, *OPTIONAL])}
    shown = ", ".join(f"{name} {found[name]}" for name in (*NAMED, *OPTIONAL) if found[name])
    yield Finding("ok", f"python {platform.python_version()}, {shown}")
    for name, bound in bounds.items():
        version = found[name]
        if version is None:
            yield Finding("problem", f"{name} is not installed", f"pip install '{name}>={bound}'")
        elif _numbers(version) < _numbers(bound):
            yield Finding("problem", f"{name} {version} is older than {bound}", f"pip install '{name}>={bound}'")


def check_devices() -> Generator[Finding, None, bool]:
    """What jax computes on. The generator's value is whether there is anything."""
    try:
        devices = find_devices()
    except ValueError as error:
        yield Finding("problem", str(error))
        return False
    device, count = devices[0], len(devices)
    what = f"{count} x {device.device_kind} ({device.platform}), {jax.process_count()} host(s)"
    limit = _device_memory()
    if limit is not None:
        what += f", {describe_size(limit[0], memory=True)} each, {describe_size(limit[1], memory=True)} in use"
    yield Finding("ok", what)
    if limit is not None and limit[1] > limit[0] / 10:
        yield Finding("warning", "another program uses the device", "end it, or expect less memory")
    if device.platform == "cpu" and (pathlib.Path("/dev/accel0").exists() or shutil.which("nvidia-smi")):
        yield Finding(
            "problem", "there is an accelerator, but jax does not use it", "pip install 'rmt-jax[tpu]' or [cuda]"
        )
    return True


def check_memory() -> Iterator[Finding]:
    """The host's."""
    path = pathlib.Path("/proc/meminfo")
    lines = dict(line.split(":", 1) for line in path.read_text().splitlines()) if path.exists() else {}
    if "MemAvailable" not in lines:
        return
    free = int(lines["MemAvailable"].split()[0]) * 1024
    what = f"{describe_size(free, memory=True)} of memory free, {os.cpu_count()} cores"
    yield Finding("ok", what) if free >= LEAST_MEMORY else Finding("warning", what, "end other programs")


def check_disk(folder: pathlib.Path, needed: int = LEAST_DISK) -> Iterator[Finding]:
    """Space where a folder is or will be, for a run that is not known."""
    yield from _check_writable(folder)
    free = free_space(folder)
    if free is None:
        return
    what = f"{describe_size(free)} of disk free at {folder}"
    if free >= needed:
        yield Finding("ok", what)
    else:
        yield Finding("problem", f"{what}, {describe_size(needed)} needed", "free some space or choose another folder")


def check_checkpoints(workdir: pathlib.Path, config: Config, size: int) -> Iterator[Finding]:
    """Whether a run's checkpoints fit the disk, as the run itself sees it; size: bytes of one."""
    yield from _check_writable(workdir)
    try:
        check_space(workdir, config.checkpoint, size)
    except ValueError as error:
        yield Finding("problem", str(error))
        return
    free = free_space(workdir)
    space = "" if free is None else f"{describe_size(free)} of disk free at {workdir}, "
    yield Finding("ok", f"{space}checkpoints of about {describe_size(size)} fit")


def _check_writable(folder: pathlib.Path) -> Iterator[Finding]:
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    if not os.access(there, os.W_OK):
        yield Finding("problem", f"{there} cannot be written", "choose another folder")


def check_data(config: Config) -> Iterator[Finding]:
    """Both splits: they open, have the same classes, their pictures can be read; label maps fit."""
    sources = []
    for split in (config.data.train_split, config.data.eval_split):
        try:
            sources.append(kind_of(config).open_source(config, split))
        except (ValueError, OSError) as error:
            yield Finding("problem", f"split {split!r}: {error}")
    for source in sources:
        yield from check_pictures(source)
    if len(sources) < 2:
        return
    train, evaluation = sources
    if differences := class_differences(train.class_names, evaluation.class_names):
        yield Finding("problem", f"the classes of {train.name} and {evaluation.name} differ: {name_some(differences)}")
    if config.data.token_labels.file is None:
        return
    try:
        kind_of(config).train_loader(train, config)
    except (ValueError, OSError) as error:
        yield Finding("problem", str(error), "see docs/token_labels.md")
    else:
        yield Finding("ok", f"label maps {config.data.token_labels.file}")


def check_pictures(source: ImageSource) -> Iterator[Finding]:
    """Some pictures spread over a source."""
    wrong, bad = [], []
    indices = np.unique(np.linspace(0, len(source) - 1, min(PICTURES, len(source))).astype(np.int64)).tolist()
    for index in indices:
        try:
            example = source[index]
            decode(example.image, example.id)
        except CorruptImageError as error:
            bad.append(str(error))
        except OSError as error:
            bad.append(f"{source.id(index)}: {error}")
        else:
            if not 0 <= example.label < source.num_classes:
                wrong.append(f"{example.id} has label {example.label}")
    for found in (bad, wrong):
        if found:
            what = f"{source.name}: {len(found)} of {len(indices)} pictures tried: {found[0]}"
            yield Finding("problem", what, "mend or remove them; a run replaces up to data.max_unreadable of a split")
    if not bad and not wrong:
        what = f"{len(source):,} pictures, {source.num_classes} classes; {len(indices)} of them read and decoded"
        yield Finding("ok", f"{source.name}: {what}")


def check_recipe(config: Config, workdir: pathlib.Path | None) -> Iterator[Finding]:
    """Whether it can start on these devices, its state fits them, and its checkpoints the disk of a workdir."""
    try:
        setup = prepare(config)
    except (ValueError, OSError, ImportError) as error:
        yield Finding("problem", f"the run cannot start here: {error}")
        return
    leaves = jax.tree.leaves(setup.program.abstract_state)
    shards = (np.prod(leaf.sharding.shard_shape(leaf.shape), dtype=np.int64) * leaf.dtype.itemsize for leaf in leaves)
    one = int(sum(shards))
    limit = _device_memory()
    what = f"the state takes {describe_size(one, memory=True)} of each device"
    what += f" of {describe_size(limit[0], memory=True)}" if limit else ""
    if limit and one > limit[0] / 2:
        yield Finding("problem", f"{what}: no room for activations", "raise mesh.fsdp, see rmt compile")
    else:
        yield Finding("ok", f"{what}; rmt compile says what activations take")
    if workdir is not None:
        yield from check_checkpoints(workdir, config, checkpoint_size(setup.program.abstract_state))


def check_workdir(workdir: pathlib.Path, config: Config | None = None) -> Iterator[Finding]:
    """What a run has left: its files can be read, every checkpoint is whole, and it is one of this configuration."""
    if not workdir.is_dir():
        yield Finding("ok", f"{workdir} is not there yet: a new run")
        return
    for name in ("config.json", "metrics.jsonl"):
        path = workdir / name
        try:
            rows = read_metrics(path) if name == "metrics.jsonl" else json.loads(path.read_text())
        except FileNotFoundError:
            yield Finding("warning", f"{path} is not there")
        except ValueError as error:
            yield Finding("problem", f"{path} is damaged: {error}", "restore it, or use another --workdir")
        else:
            yield Finding("ok", f"{path}: {len(rows):,} {'lines' if name == 'metrics.jsonl' else 'keys'}")
            if name == "config.json" and config is not None:
                yield from _check_configuration(workdir, config)
    folder = checkpoint_folder(workdir)
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    for step in sorted(int(name) for name in names if name.isdecimal()):
        damage = find_damage(folder / str(step))
        if damage is None:
            yield Finding("ok", f"checkpoint {step} is whole")
        else:
            yield Finding("problem", f"checkpoint {step}: {damage}", f"move {folder / str(step)} away")


def _check_configuration(workdir: pathlib.Path, config: Config) -> Iterator[Finding]:
    try:
        open_workdir(workdir, config, write=False)
    except ValueError as error:
        what, *differences, mend = str(error).splitlines()
        yield Finding("problem", f"{what} {', '.join(map(str.strip, differences))}", mend)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)[:3]]


def _device_memory() -> tuple[int, int] | None:
    """(limit, in use) of the first device, in bytes, where it says."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return (stats["bytes_limit"], stats.get("bytes_in_use", 0)) if "bytes_limit" in stats else None
