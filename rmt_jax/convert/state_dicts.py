"""Finding RMT's weights in a file: which entry, under which prefix, beside which heads."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from rmt_jax.convert.names import dense_task
from rmt_jax.convert.weights import KINDS, UNSTATED

STEM = "patch_embed.proj.0.weight"  # every RMT has it, and nothing else does
MAX_NESTING = 3
RAW_ENTRIES = ("model", "state_dict")  # as upstream, mmcv and timm call the raw weights

# What a file of a detector or segmentor is, by a key beside its backbone; the first that is found says it.
DENSE_LAYOUTS: tuple[tuple[str, str], ...] = (
    (r"^roi_head\.bbox_head\.0\.", "mmdetection, Cascade Mask R-CNN"),
    (r"^roi_head\.mask_head\.", "mmdetection, Mask R-CNN"),
    (r"^bbox_head\.retina_cls\.", "mmdetection, RetinaNet"),
    (r"^decode_head\.psp_modules\.", "mmsegmentation, UperNet"),
    (r"^decode_head\.scale_heads\.", "mmsegmentation, Semantic FPN"),
    (r"^(rpn_head|roi_head|bbox_head)\.", "mmdetection"),
    (r"^(decode_head|auxiliary_head)\.", "mmsegmentation"),
    (r"^neck\.", "detector or segmentor"),
)
DENSE_HEADS = re.compile(r"^(neck|bbox_head|rpn_head|roi_head|decode_head|auxiliary_head)\.")


class Candidate(NamedTuple):
    """A dict of tensors with one RMT in it.

    Attributes:
        entry: where it lies in the file, such as "model_ema"; "" is the file itself.
        prefix: of its keys, such as "module." or "backbone.".
        state_dict: the RMT's entries, without the prefix; of segmentors and detectors that we have also those of
            their neck and heads.
        heads: entries of the neck and heads of what we have the backbone of only, by their whole keys.
        unknown: all other entries, by their whole keys.
    """

    entry: str
    prefix: str
    state_dict: dict[str, Any]
    heads: dict[str, Any]
    unknown: dict[str, Any]

    @property
    def kind(self) -> str:
        """One of `KINDS`, by the entry's name: model_ema and state_dict_ema are moving averages."""
        name = self.entry.rpartition(".")[2].lower()
        if "ema" in name.split("_"):
            return "ema"
        return "raw" if name in RAW_ENTRIES else UNSTATED

    @property
    def layout(self) -> str:
        """What kind of file it is from, in words."""
        outer = self.prefix.removesuffix("backbone.")
        keys = [key.removeprefix(outer) for key in self.heads] + list(self.state_dict)
        for pattern, name in DENSE_LAYOUTS:
            if any(re.search(pattern, key) for key in keys):
                return name
        if "aux_head.weight" in self.state_dict:
            return "upstream, token labelling"
        return "upstream, classification" if "head.weight" in self.state_dict else "backbone"


def find_candidates(content: Any) -> list[Candidate]:
    """Every dict in a file's content that holds an RMT.

    Raises:
        ValueError: one of them holds several, such as a teacher and a student.
    """
    return [_candidate(entry, tensors) for entry, tensors in _dicts_with_stem(content)]


def choose(candidates: list[Candidate], content: Any, *, weights: str | None, entry: str | None) -> Candidate:
    """The candidate to convert.

    Args:
        candidates: of `find_candidates`.
        content: of the file, for the error.
        weights: "ema" or "raw"; None is the moving average where there is one.
        entry: the candidate's entry; None leaves it to `weights`.

    Raises:
        ValueError: none or several fit.
    """
    if not candidates:
        raise ValueError(
            f"No weights of RMT found: no key ends with {STEM}. The file holds: {describe_content(content)}."
        )
    names = ", ".join(_name(candidate) for candidate in candidates)
    if entry is not None:
        chosen = [candidate for candidate in candidates if candidate.entry == entry]
        if not chosen:
            raise ValueError(f"No weights of RMT under {entry!r}; there are: {names}.")
        return chosen[0]
    averages = [candidate for candidate in candidates if candidate.kind == "ema"]
    others = [candidate for candidate in candidates if candidate.kind != "ema"]
    chosen = {"ema": averages, "raw": others, None: averages or others}[weights]
    if not chosen:
        raise ValueError(f"--weights={weights}: {KINDS[str(weights)]} is not in the file; there are: {names}.")
    if len(chosen) > 1:
        several = ", ".join(_name(candidate) for candidate in chosen)
        raise ValueError(f"The file holds several candidates: {several}. Choose one with --entry.")
    return chosen[0]


def read_class_names(content: Any, num_classes: int) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """(the names that mmcv keeps beside the weights, None where there are none that fit; notes about it)."""
    meta = content.get("meta") if isinstance(content, Mapping) else None
    names = meta.get("CLASSES") if isinstance(meta, Mapping) else None
    if names is None:
        return None, ()
    if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names) and len(names) == num_classes:
        return tuple(names), ()
    return None, (f"meta.CLASSES left out: it does not hold the names of {num_classes} classes.",)


def describe_content(content: Any) -> str:
    """A file's entries in a few words each."""
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    if not content:
        return "nothing"
    parts = [f"{key}: {describe_value(value)}" for key, value in list(content.items())[:12]]
    return ", ".join(parts) + (f" and {len(content) - 12} more" if len(content) > 12 else "")


def describe_value(value: Any) -> str:
    """A value of a file in a few words."""
    if isinstance(value, Mapping):
        return f"dict of {len(value)}"
    if hasattr(value, "shape"):
        return f"array {tuple(value.shape)}"
    text = repr(value)
    return text if len(text) <= 40 else type(value).__name__


def _dicts_with_stem(content: Any, entry: str = "", depth: int = 0) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if not isinstance(content, Mapping) or depth > MAX_NESTING or not all(isinstance(key, str) for key in content):
        return
    if any(_prefix(key) is not None for key in content):
        yield entry, content
        return
    for key, value in content.items():
        yield from _dicts_with_stem(value, f"{entry}.{key}" if entry else key, depth + 1)


def _prefix(key: str) -> str | None:
    """What stands before the stem's first weight: "" or something that ends with a dot; None in any other key."""
    if key == STEM:
        return ""
    return key.removesuffix(STEM) if key.endswith(f".{STEM}") else None


def _candidate(entry: str, tensors: Mapping[str, Any]) -> Candidate:
    prefixes = [prefix for key in tensors if (prefix := _prefix(key)) is not None]
    if len(prefixes) > 1:
        raise ValueError(
            f"{entry or 'The file'} holds several models, under the prefixes "
            f"{', '.join(repr(prefix) for prefix in prefixes)}: save the one to convert alone."
        )
    (prefix,) = prefixes
    outer = prefix.removesuffix("backbone.")
    if dense_task(key.removeprefix(outer) for key in tensors):
        prefix = outer
    state_dict, heads, unknown = {}, {}, {}
    for key, value in tensors.items():
        if key.startswith(prefix):
            state_dict[key.removeprefix(prefix)] = value
        elif prefix.endswith("backbone.") and DENSE_HEADS.match(key.removeprefix(outer)):
            heads[key] = value
        else:
            unknown[key] = value
    return Candidate(entry, prefix, state_dict, heads, unknown)


def _name(candidate: Candidate) -> str:
    return candidate.entry or "the file itself"
