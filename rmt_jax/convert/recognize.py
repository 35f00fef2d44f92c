"""Which model a state dict belongs to, by its keys and shapes."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from rmt_jax.convert.names import dense_task, relpos_constants
from rmt_jax.models import RMTConfig, list_models, variant
from rmt_jax.models.detection_heads import RETINA_ANCHORS

STAR = "_star"

# Upstream's released RMT-S* has an auxiliary head as wide as the projection. That it reads after the activation, where
# the classification head reads too, is our guess: no published output tells.
WIDE_AUX_TAP = "activation"

# A layer of each head that tells the number of classes, and its outputs for each of them.
CLASS_LAYERS: Mapping[str, tuple[str, int]] = {
    "semantic_fpn": ("decode_head.conv_seg", 1),
    "upernet": ("decode_head.conv_seg", 1),
    "retinanet": ("bbox_head.retina_cls", RETINA_ANCHORS),
    "mask_rcnn": ("roi_head.mask_head.conv_logits", 1),
    "cascade_mask_rcnn": ("roi_head.mask_head.0.conv_logits", 1),
}

Shapes = Mapping[str, tuple[int, ...]]


class Recognized(NamedTuple):
    """A model by name, with the task, the architecture and the head of a dense task that its weights ask for."""

    name: str
    task: str
    config: RMTConfig
    notes: tuple[str, ...]
    head: str | None = None


class Outline(NamedTuple):
    """What the keys and shapes of a backbone tell; None where they do not."""

    embed_dims: tuple[int | None, ...]
    depths: tuple[int, ...]
    hidden: tuple[int | None, ...]
    layer_scale: tuple[bool, ...]
    num_heads: tuple[int | None, ...]


def recognize(state_dict: Mapping[str, Any], *, model: str | None = None, aux_tap: str | None = None) -> Recognized:
    """The model of an upstream state dict.

    Args:
        state_dict: {upstream's key: array}, without a prefix.
        model: its name, where it is known; the number of classes and the widths are still read off.
        aux_tap: where an auxiliary head as wide as the projection reads, see `RMTConfig`.

    Raises:
        ValueError: no known model has these keys and shapes, or several do.
    """
    shapes: Shapes = {key: np.shape(value) for key, value in state_dict.items()}
    dense = dense_task(shapes)
    if dense is not None:
        task, head = dense
        backbone = {key.removeprefix("backbone."): value for key, value in state_dict.items()}
        name = model or _base_name({key: np.shape(value) for key, value in backbone.items()}, backbone)
        layer, outputs = CLASS_LAYERS[head]
        fields = {key: size // outputs for key, size in _first_sizes(shapes, num_classes=f"{layer}.weight").items()}
        if task == "detection":
            fields |= _first_sizes(shapes, detector_features="neck.lateral_convs.0.conv.weight")
        return Recognized(name, task, variant(name, extra_norms=True, **fields), (), head)
    task, fields = _task(shapes)
    notes: list[str] = []
    if task == "classification":
        fields |= _first_sizes(shapes, num_classes="head.weight", proj_dim="proj.weight")
        name = model or _base_name(shapes, state_dict) + (STAR if "aux_head.weight" in shapes else "")
        if "aux_head.weight" in shapes:
            fields |= _aux_fields(shapes, variant(name), aux_tap, notes)
        elif aux_tap is not None:
            raise ValueError("--aux-tap is of models with an auxiliary head, and these weights have none.")
    else:
        name = model or _base_name(shapes, state_dict)
    return Recognized(name, task, variant(name, **fields), tuple(notes))


def outline(shapes: Shapes) -> Outline:
    """Channels, depths, hidden widths, layer scale and heads of the four stages."""
    blocks = [re.match(r"layers\.(\d)\.blocks\.(\d+)\.", key) for key in shapes]
    depths = tuple(1 + max((int(b[2]) for b in blocks if b and int(b[1]) == stage), default=-1) for stage in range(4))

    def first(key: str) -> tuple[int | None, ...]:
        found = [shapes.get(key.format(stage)) for stage in range(4)]
        return tuple(shape[0] if shape else None for shape in found)

    return Outline(
        embed_dims=first("layers.{}.blocks.0.final_layer_norm.weight"),
        depths=depths,
        hidden=first("layers.{}.blocks.0.ffn.fc1.weight"),
        layer_scale=tuple(f"layers.{stage}.blocks.0.gamma_1" in shapes for stage in range(4)),
        num_heads=first("layers.{}.Relpos.decay"),
    )


def _task(shapes: Shapes) -> tuple[str, dict[str, Any]]:
    head = sorted(key for key in shapes if re.match(r"(proj|norm|head|aux_head)\.", key))
    norms = sorted(key for key in shapes if key.startswith("extra_norms."))
    if head and norms:
        raise ValueError(
            f"These weights are ambiguous: they have a classifier's head ({head[0]}, {len(head)} entries) and the "
            f"norms of a detector's or segmentor's backbone ({norms[0]}, {len(norms)} entries)."
        )
    return ("classification", {}) if head else ("backbone", {"extra_norms": bool(norms)})


def _first_sizes(shapes: Shapes, **keys: str) -> dict[str, Any]:
    """{field: outputs of the layer of that key}."""
    # What is missing is reported with all that is missing.
    return {field: shapes[key][0] for field, key in keys.items() if shapes.get(key)}


def _aux_fields(shapes: Shapes, config: RMTConfig, aux_tap: str | None, notes: list[str]) -> dict[str, Any]:
    width, features = shapes["aux_head.weight"][-1], config.embed_dims[-1]
    projection = shapes.get("proj.weight", (config.proj_dim,))[0]
    narrow, wide = width == features, width == projection
    fits = {"features": narrow, "proj": wide, "norm": wide, "activation": wide}
    if aux_tap is None and narrow and wide:
        raise ValueError(
            f"These weights are ambiguous: the auxiliary head takes {width} channels, and so many have both the last "
            f"stage and the projection. Say where it reads with --aux-tap."
        )
    tap = aux_tap or ("features" if narrow else WIDE_AUX_TAP)
    if not fits[tap]:
        raise ValueError(
            f"The auxiliary head takes {width} channels"
            + (f", which does not go with aux_tap={aux_tap!r}" if aux_tap else "")
            + f": the last stage has {features}, the projection {projection}."
        )
    if wide:
        notes.append(
            f"aux tap unverified: the auxiliary head takes the projection's {width} channels; whether after the "
            f"projection, its BatchNorm or its activation is not in the file. Built with aux_tap={tap!r}"
            + (", as given." if aux_tap else ", a guess: --aux-tap changes it.")
        )
    return {"aux_tap": tap}


def _base_name(shapes: Shapes, state_dict: Mapping[str, Any]) -> str:
    """The unstarred model whose backbone has these shapes, and these constants where the shapes leave several."""
    found = outline(shapes)
    names = [name for name in list_models() if not name.endswith(STAR)]
    outlines = {name: _outline_of(variant(name)) for name in names}
    matches = [name for name in names if not _differences(found, outlines[name])]
    if len(matches) > 1:  # where no constants fit, the conversion says which do not
        matches = [name for name in matches if _has_constants(state_dict, variant(name))] or matches
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise ValueError(
            f"These weights are ambiguous: their shapes are those of {' and '.join(matches)}. Choose one with --model."
        )
    nearest = min(names, key=lambda name: len(_differences(found, outlines[name])))
    differences = "; ".join(
        f"{field} {getattr(found, field)}, there {getattr(outlines[nearest], field)}"
        for field in _differences(found, outlines[nearest])
    )
    raise ValueError(f"These weights are of no known model. Nearest is {nearest}, which differs: {differences}.")


def _outline_of(config: RMTConfig) -> Outline:
    return Outline(
        embed_dims=config.embed_dims,
        depths=config.depths,
        hidden=tuple(int(d * ratio) for d, ratio in zip(config.embed_dims, config.mlp_ratios, strict=True)),
        layer_scale=tuple(scale is not None for scale in config.layer_scale),
        num_heads=config.num_heads,
    )


def _differences(found: Outline, known: Outline) -> list[str]:
    """Fields that differ; what the weights do not tell differs from nothing."""
    return [
        field
        for field in Outline._fields
        if any(a is not None and a != b for a, b in zip(getattr(found, field), getattr(known, field), strict=True))
    ]


def _has_constants(state_dict: Mapping[str, Any], config: RMTConfig) -> bool:
    constants = relpos_constants(config)
    return all(
        np.shape(state_dict[key]) == value.shape and np.allclose(state_dict[key], value, rtol=1e-3)
        for key, value in constants.items()
        if key in state_dict
    )
