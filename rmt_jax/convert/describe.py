"""What weights are, in words."""

import pathlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

from rmt_jax.convert.directories import checkpoint_folder, has_checkpoint, is_model_directory
from rmt_jax.convert.names import convert_state_dict
from rmt_jax.convert.recognize import recognize
from rmt_jax.convert.sources import read_file, read_weights
from rmt_jax.convert.state_dicts import Candidate, describe_value, find_candidates
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
    rows = {"layout": origin["layout"], "weights": which, "model": weights.describe()}
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
        ValueError: it cannot be read at all.
    """
    if is_model_directory(path):
        weights = read_weights(path)
        return "model directory", {"model": weights.describe()} | _provenance(weights.provenance["before"])
    if path.is_dir() and has_checkpoint(path):
        weights = read_weights(path)
        steps = sorted(int(step.name) for step in checkpoint_folder(path).iterdir() if step.name.isdigit())
        return "workdir of a training run", {
            "model": weights.describe(),
            "checkpoints": f"steps {', '.join(map(str, steps))}; raw weights and their moving average (EMA) each",
        }
    if path.is_dir():
        raise ValueError(f"{path} is a directory, but neither a model directory nor a workdir.")
    file = read_file(path)
    candidates = {candidate.entry: candidate for candidate in find_candidates(file.content)}
    rows = {entry or "(the file itself)": _describe_candidate(candidate) for entry, candidate in candidates.items()}
    if "" not in candidates and isinstance(file.content, Mapping):
        others = [str(key) for key in file.content if not any(entry.split(".")[0] == key for entry in candidates)]
        rows |= {key: describe_value(file.content[key]) for key in others}
    return f"{file.kind} file", rows


def _describe_candidate(candidate: Candidate) -> str:
    parts = [f"{len(candidate.state_dict)} entries of an RMT, {KINDS[candidate.kind]}; layout: {candidate.layout}"]
    if candidate.prefix:
        parts.append(f"prefix {candidate.prefix!r}")
    if candidate.heads:
        parts.append(f"{len(candidate.heads)} entries of neck and heads")
    try:
        name, task, config, notes = recognize(candidate.state_dict)
    except ValueError as error:
        return "; ".join([*parts, f"not recognised: {error}"])
    conversion = convert_state_dict(candidate.state_dict, Weights(name, task, config, {}).abstract_model())
    problems = len(conversion.problems) + len(candidate.unknown)
    converted = Weights(name, task, config, conversion.arrays).describe()
    parts.append(f"{problems} problem(s), would be refused" if problems else converted)
    return "; ".join([*parts, *notes])


def _provenance(card: Mapping[str, Any]) -> Rows:
    versions = ", ".join(f"{name} {version}" for name, version in card.get("versions", {}).items())
    keys = ("source", "sha256", "layout", "entry", "prefix", "step")
    rows = {key: str(card[key]) for key in keys if key in card}
    rows["weights"] = KINDS.get(card.get("weights", ""), "")
    return rows | {"versions": versions}


def _group(key: str) -> str:
    """neck.lateral_convs.0.conv.weight -> neck, roi_head.mask_head.convs.0.conv.weight -> roi_head.mask_head."""
    parts = key.removeprefix("module.").split(".")
    return ".".join(parts[:2]) if parts[0] == "roi_head" else parts[0]
