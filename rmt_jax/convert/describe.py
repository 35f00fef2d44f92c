"""What weights are, in words."""

import dataclasses
import pathlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

from rmt_jax.convert.directories import checkpoint_folder, is_model_directory
from rmt_jax.convert.names import convert_state_dict
from rmt_jax.convert.recognize import recognize
from rmt_jax.convert.sources import read_file, read_weights
from rmt_jax.convert.state_dicts import Candidate, describe_content, describe_value, find_candidates
from rmt_jax.convert.weights import KINDS, Weights

Rows = dict[str, str]


def describe_weights(weights: Weights, *, chosen: bool = False) -> Rows:
    """Rows about weights as read: where from, which, of what model, what was left out.

    Args:
        weights: of `read_weights`.
        chosen: whether the user said which weights to take; otherwise a moving average is named as the default.
    """
    origin = weights.provenance
    which = weights.kind
    which += "".join(f", {what} {origin[what]!r}" for what in ("entry", "prefix", "step") if what in origin)
    if origin["weights"] == "ema" and not chosen and origin["layout"] != "rmt_jax":
        which += " (the default; --weights=raw takes the raw weights)"
    rows = {"layout": origin["layout"], "weights": which, "model": weights.describe()} | _labels(weights)
    constants = sum("Relpos" in key for key in weights.buffers)
    rows["entries"] = (
        f"{len(weights.arrays)} arrays, {constants} constants checked, {len(weights.buffers) - constants} counters kept"
    )
    if weights.left_out:
        groups = Counter(_group(key) for key in weights.left_out)
        rows["left out"] = f"{len(weights.left_out)} entries beside the backbone: " + ", ".join(
            f"{group} ({count})" for group, count in groups.items()
        )
    return rows | {f"note {i}" if i > 1 else "note": note for i, note in enumerate(weights.notes, 1)}


def describe_source(path: pathlib.Path) -> tuple[str, Rows]:
    """(kind, rows) about everything that is there, whether it converts or not.

    Raises:
        ImportError: PyTorch is needed and missing.
        ValueError: it cannot be read at all.
    """
    if is_model_directory(path):
        return "model directory", _describe_converted(path)
    if path.is_dir():
        weights = read_weights(path)  # a workdir, or refused
        steps = sorted(int(step.name) for step in checkpoint_folder(path).iterdir() if step.name.isdigit())
        return "workdir of a training run", {
            "model": weights.describe(),
            "checkpoints": f"steps {', '.join(map(str, steps))}; raw weights and their moving average (EMA) each",
        } | _labels(weights)
    try:
        file = read_file(path)
        if file.card is not None:
            return f"{file.kind} file of rmt_jax", _describe_converted(path)
        return f"{file.kind} file", _describe_content(file.content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _describe_converted(path: pathlib.Path) -> Rows:
    weights = read_weights(path)
    card = weights.provenance["before"]
    keys = ("source", "sha256", "layout", "entry", "prefix", "step")
    rows = {"model": weights.describe(), "weights": weights.kind} | _labels(weights)
    rows |= {key: str(card[key]) for key in keys if key in card}
    versions = card.get("versions", {})
    return rows | {"versions": ", ".join(f"{name} {version}" for name, version in versions.items())}


def _labels(weights: Weights) -> Rows:
    """What is known of the classes and of the pictures."""
    rows = {}
    if weights.class_names is not None:
        first, more = weights.class_names[:5], len(weights.class_names) > 5
        rows["classes"] = f"{len(weights.class_names)}: {', '.join(first)}{', ...' if more else ''}"
    if weights.preprocessing is not None:
        rows["pictures"] = str(weights.preprocessing)
    return rows


def _describe_content(content: Any) -> Rows:
    candidates = {candidate.entry: candidate for candidate in find_candidates(content)}
    rows = {entry or "(the file itself)": _describe_candidate(candidate) for entry, candidate in candidates.items()}
    if "" in candidates:
        return rows
    if not isinstance(content, Mapping):
        return {"content": describe_content(content)}
    outer = {entry.partition(".")[0] for entry in candidates}
    return rows | {str(key): describe_value(value) for key, value in content.items() if key not in outer}


def _describe_candidate(candidate: Candidate) -> str:
    parts = [f"{len(candidate.state_dict)} entries of an RMT, {KINDS[candidate.kind]}; layout: {candidate.layout}"]
    if candidate.prefix:
        parts.append(f"prefix {candidate.prefix!r}")
    if candidate.heads:
        parts.append(f"{len(candidate.heads)} entries of neck and heads")
    try:
        name, task, config, notes, head = recognize(candidate.state_dict)
    except ValueError as error:
        return "; ".join([*parts, f"not recognised: {error}"])
    weights = Weights(name, task, config, {}, head=head)
    conversion = convert_state_dict(candidate.state_dict, weights.abstract_model())
    problems = len(conversion.problems) + len(candidate.unknown)
    converted = dataclasses.replace(weights, arrays=conversion.arrays).describe()
    parts.append(f"{problems} problem(s), would be refused" if problems else converted)
    return "; ".join([*parts, *notes])


def _group(key: str) -> str:
    """neck.lateral_convs.0.conv.weight -> neck, roi_head.mask_head.convs.0.conv.weight -> roi_head.mask_head."""
    parts = key.removeprefix("module.").split(".")
    return ".".join(parts[:2]) if parts[0] == "roi_head" else parts[0]
