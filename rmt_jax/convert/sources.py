"""Weights from wherever they are: a PyTorch or safetensors file, a model directory, a workdir, the Hugging Face hub."""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import safetensors

from rmt_jax.convert.card import Card, parse_card
from rmt_jax.convert.directories import (
    has_checkpoint,
    is_model_directory,
    item_folder,
    read_directory,
    read_workdir,
)
from rmt_jax.convert.hub import download, is_hub_name
from rmt_jax.convert.names import convert_state_dict, raise_problems, torch_key
from rmt_jax.convert.preprocessing import upstream_preprocessing
from rmt_jax.convert.recognize import recognize
from rmt_jax.convert.state_dicts import choose, find_candidates, read_class_names
from rmt_jax.convert.torch_file import read_torch
from rmt_jax.convert.weights import KINDS, UNSTATED, Weights, array_problems
from rmt_jax.models import RMTConfig
from rmt_jax.version import __version__

CARD_KEY = "rmt_jax"  # of a file's metadata

_NOT_CHECKPOINTS = (
    (b"<", "looks like a web page: was the page downloaded instead of the file?"),
    (b"version https://git-lfs", "is a Git LFS pointer, not the file itself: run `git lfs pull`."),
)


class File(NamedTuple):
    """What a file holds.

    Attributes:
        content: tensors as arrays, dicts and all else as they are.
        card: JSON text that says what model it is, in files that we wrote.
        kind: in words.
    """

    content: Any
    card: str | None
    kind: str


def read_weights(
    source: str | pathlib.Path,
    *,
    weights: str | None = None,
    entry: str | None = None,
    model: str | None = None,
    aux_tap: str | None = None,
) -> Weights:
    """A model's weights, complete and checked.

    Args:
        source: a .pth, .pt or .safetensors file under any name, a model directory, the workdir of a training run, or
            "user/name" (or "user/name@revision") on the Hugging Face hub.
        weights: "ema" or "raw"; None is the moving average where there is one.
        entry: the entry of a PyTorch file, where it holds several candidates.
        model: name of the model, where its keys and shapes do not tell.
        aux_tap: where an auxiliary head as wide as the projection reads, see `RMTConfig`.

    Raises:
        FileNotFoundError: nothing there.
        ImportError: PyTorch or huggingface_hub is needed and missing.
        ValueError: no weights of RMT, not safe to read, or incomplete; with everything that does not fit.
    """
    path = locate(source)
    options = {"entry": entry, "model": model, "aux_tap": aux_tap}
    try:
        if not path.is_dir():
            found = _from_file(path, weights=weights, **options)
        else:
            _check_no_options(options)
            found = _from_directory(path, weights)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    identity = {"source": path.name, "sha256": sha256(_content(path, found.provenance)), "versions": _versions()}
    return dataclasses.replace(found, provenance=identity | dict(found.provenance))


def locate(source: str | pathlib.Path) -> pathlib.Path:
    """The local path of a source, which is downloaded when it is a name on the hub.

    Raises:
        FileNotFoundError: neither a path nor a name on the hub.
    """
    path = pathlib.Path(source).expanduser()
    if path.exists():
        return path
    if not isinstance(source, str) or not is_hub_name(source) or path.suffix in (".pth", ".pt", ".safetensors"):
        raise FileNotFoundError(f"{source}: no such file or directory.")
    return download(source)


def read_file(path: pathlib.Path) -> File:
    """What a checkpoint file holds, whatever its name; nothing in it is run.

    Raises:
        ImportError: it is a PyTorch file, and PyTorch is missing.
        ValueError: it is no such file, damaged, or not safe to read.
    """
    with path.open("rb") as file:
        start = file.read(32)
    if not start:
        raise ValueError("The file is empty (an interrupted download?).")
    for beginning, meaning in _NOT_CHECKPOINTS:
        if start.lstrip().startswith(beginning):
            raise ValueError(f"This {meaning}")
    if path.suffix == ".safetensors" or start[8:9] == b"{":
        return _read_safetensors(path)
    content = read_torch(path)
    card = content.get(CARD_KEY) if isinstance(content, Mapping) else None
    return File(content, card if isinstance(card, str) else None, "PyTorch")


def _read_safetensors(path: pathlib.Path) -> File:
    arrays: dict[str, np.ndarray] = {}
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            for key in file.keys():  # noqa: SIM118, not a dict
                if file.get_slice(key).get_dtype() != "BF16":
                    arrays[key] = file.get_tensor(key)
        missing = _bfloat16(path, arrays)
    except safetensors.SafetensorError as error:
        raise ValueError(f"This is no safetensors file, or a damaged one (an incomplete download?): {error}") from error
    return File(arrays | missing, metadata.get(CARD_KEY), "safetensors")


def _bfloat16(path: pathlib.Path, others: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The bfloat16 arrays of a safetensors file, which its reader for NumPy refuses."""
    arrays = {}
    with safetensors.safe_open(path, framework="flax") as file:
        for key in file.keys():  # noqa: SIM118, not a dict
            if key not in others:
                arrays[key] = np.asarray(file.get_tensor(key)).astype(ml_dtypes.bfloat16, copy=False)
    return arrays


def _from_file(
    path: pathlib.Path, *, weights: str | None, entry: str | None, model: str | None, aux_tap: str | None
) -> Weights:
    file = read_file(path)
    candidates = find_candidates(file.content)
    notes: tuple[str, ...] = ()
    if file.card is None or model is not None:
        chosen = choose(candidates, file.content, weights=weights, entry=entry)
        name, task, config, notes, head = recognize(chosen.state_dict, model=model, aux_tap=aux_tap)
        provenance = {"layout": chosen.layout, "weights": chosen.kind}
        card = Card(name, task, config, provenance, preprocessing=upstream_preprocessing(task, config), head=head)
        if head is not None:
            class_names, more_notes = read_class_names(file.content, config.num_classes)
            card, notes = card._replace(class_names=class_names), notes + more_notes
        if file.card is not None:  # another model than it says, but the same classes and pictures
            before = parse_card(file.card, f"its entry {CARD_KEY}")
            card = card._replace(class_names=before.class_names, preprocessing=before.preprocessing)
    else:
        chosen = choose(candidates, file.content, weights=None, entry=entry)
        card = parse_card(file.card, f"its entry {CARD_KEY}")
        _check_kind(card.provenance, weights)
        _check_depths(card.config, len(chosen.state_dict))
        card = card._replace(provenance=_inherited(card.provenance))
    empty = Weights(card.name, card.task, card.config, {}, head=card.head)
    conversion = convert_state_dict(chosen.state_dict, empty.abstract_model())
    unknown = [f"unexpected: {key} {np.shape(value)}" for key, value in chosen.unknown.items()]
    raise_problems(conversion.problems + unknown, card.name)
    return dataclasses.replace(
        empty,
        class_names=card.class_names,
        preprocessing=card.preprocessing,
        arrays=conversion.arrays,
        buffers=conversion.buffers,
        provenance=card.provenance
        | {key: value for key, value in (("entry", chosen.entry), ("prefix", chosen.prefix)) if value},
        source_keys={own: chosen.prefix + torch_key(own, card.task) for own in conversion.arrays},
        left_out={key: np.shape(value) for key, value in chosen.heads.items()},
        notes=notes,
    )


def _from_directory(path: pathlib.Path, weights: str | None) -> Weights:
    if is_model_directory(path):
        found = read_directory(path)
        _check_kind(found.provenance, weights)
        _check_depths(found.config, len(found.arrays))
        found = dataclasses.replace(found, provenance=_inherited(found.provenance))
    elif (path / "config.json").is_file() or has_checkpoint(path):
        found = read_workdir(path, raw=weights == "raw")
    else:
        raise ValueError(
            "This directory is neither a model directory (of `rmt convert`) nor a workdir (of main.py). Give the "
            "checkpoint file in it, if there is one."
        )
    raise_problems(array_problems(found.arrays, found.abstract_model()), found.name)
    return found


def _inherited(before: Mapping[str, Any]) -> dict[str, Any]:
    """The provenance of what was converted before: what it says of the weights stays, the rest goes one step back."""
    return {"layout": "rmt_jax", "weights": before.get("weights", UNSTATED), "before": dict(before)}


def _check_no_options(options: Mapping[str, str | None]) -> None:
    for name, value in options.items():
        if value is not None:
            raise ValueError(f"--{name.replace('_', '-')} is of files; a directory says itself what it holds.")


def _check_kind(before: Mapping[str, Any], weights: str | None) -> None:
    kind = before.get("weights", UNSTATED)
    if weights is not None and weights != kind:
        raise ValueError(f"--weights={weights}: only one set of weights is there, {KINDS.get(kind, kind)}.")


def _check_depths(config: RMTConfig, entries: int) -> None:
    """Before a model of a size that a damaged file claims is built."""
    blocks = sum(config.depths)
    if blocks > entries:
        raise ValueError(f"Damaged: the configuration says {blocks} blocks, and there are {entries} arrays.")


def _content(path: pathlib.Path, provenance: Mapping[str, Any]) -> pathlib.Path:
    """The file or folder that was read: of a workdir only a small part."""
    if "step" not in provenance:
        return path
    return item_folder(path, provenance["step"], raw=provenance["weights"] == "raw")


def sha256(path: pathlib.Path) -> str:
    """Of a file, or of all files of a folder with their names."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for file_path in sorted(path.rglob("*")):
        if file_path.is_file():
            digest.update(f"{file_path.relative_to(path)}\n{sha256(file_path)}\n".encode())
    return digest.hexdigest()


def _versions() -> dict[str, str]:
    installed = {"rmt_jax": __version__}
    for package in ("jax", "flax", "orbax-checkpoint", "numpy", "torch"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed[package] = importlib.metadata.version(package)
    return installed
