"""The family in one table, and the configuration that a table row is."""

import dataclasses
import difflib
from typing import Any, Literal, get_args

from rmt_jax.models.block_loop import Remat

Number = int | float
AuxTap = Literal["features", "proj", "norm", "activation"]


@dataclasses.dataclass(frozen=True)
class RMTConfig:
    """Architecture of an RMT classifier; tuples have one entry for each of the four stages.

    Attributes:
        embed_dims: channels.
        depths: number of blocks.
        num_heads: retention heads; each has embed_dim / num_heads channels.
        mlp_ratios: hidden channels of the FFN as a multiple of embed_dim.
        decay_spans: "head range" of the paper: head i of N keeps gamma = 1 - 2 ** (-decay_start - span * i / N).
        decomposed: retention along the width, then along the height (True), or over all tokens at once (False).
        layer_scale: initial value of the learned factor of each residual branch, None where there is none.
        drop_path: rate of the last block; the rates rise linearly from 0 over all blocks.
        decay_start: "initial value" of the paper.
        proj_dim: width of the projection before the classification head.
        num_classes: outputs of the head.
        aux_head: token-level head of the starred models.
        aux_tap: where the auxiliary head reads: the last stage's output, or after the projection, its BatchNorm or its
            activation (upstream's released RMT-S* has a head as wide as the projection; where it reads is unknown).
        extra_norms: a LayerNorm on each of the four maps that a backbone returns, as upstream's detectors and
            segmentors have. Not for classifiers.
        detector_features: channels of a detector's pyramid and heads; linear layers of box heads have four times as
            many. Other models have none of these.
        remat: what each block recomputes in the backward pass instead of keeping it: "none", "dots" (all but the
            outputs of linear layers) or "full". Changes no number.
        scan: compile the blocks of a stage as one body and loop over it. Changes no number.
    """

    embed_dims: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]
    num_heads: tuple[int, int, int, int]
    mlp_ratios: tuple[Number, Number, Number, Number]
    decay_spans: tuple[Number, Number, Number, Number]
    decomposed: tuple[bool, bool, bool, bool] = (True, True, True, False)
    layer_scale: tuple[float | None, float | None, float | None, float | None] = (None, None, None, None)
    drop_path: float = 0.0
    decay_start: Number = 2
    proj_dim: int = 1024
    num_classes: int = 1000
    aux_head: bool = False
    aux_tap: AuxTap = "features"
    extra_norms: bool = False
    detector_features: int = 256
    remat: Remat = "none"
    scan: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError for numbers that make no model."""
        for field in ("embed_dims", "depths", "num_heads", "mlp_ratios", "decay_spans", "decomposed", "layer_scale"):
            value = getattr(self, field)
            if not isinstance(value, list | tuple):
                raise ValueError(f"{field} needs one entry for each of the four stages, got {value!r}.")
            value = tuple(value)
            object.__setattr__(self, field, value)
            if len(value) != 4:
                raise ValueError(f"{field} needs one entry for each of the four stages, got {value}.")
        for name in ("embed_dims", "depths", "num_heads", "proj_dim", "num_classes", "detector_features"):
            value = getattr(self, name)
            numbers = value if isinstance(value, tuple) else (value,)
            if not all(isinstance(number, int) and number > 0 for number in numbers):
                raise ValueError(f"{name} must be positive whole numbers, got {value}.")
        for stage, (dim, heads) in enumerate(zip(self.embed_dims, self.num_heads, strict=True), 1):
            if dim % (2 * heads):
                raise ValueError(
                    f"Stage {stage}: {dim} channels cannot be split into {heads} heads of an even number of channels "
                    f"(rotary phases turn pairs). Choose embed_dims as a multiple of 2 * num_heads."
                )
        if min(self.mlp_ratios) <= 0:
            raise ValueError(f"mlp_ratios must be positive, got {self.mlp_ratios}.")
        if self.decay_start <= 0 or min(self.decay_spans) < 0:
            raise ValueError(
                f"Decays gamma = 1 - 2 ** (-decay_start - span * i / N) need decay_start > 0 and decay_spans >= 0, got "
                f"{self.decay_start} and {self.decay_spans}."
            )
        if self.embed_dims[0] % 2:
            raise ValueError(f"The stem works at half of embed_dims[0], which must be even, got {self.embed_dims[0]}.")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path is a probability in [0, 1), got {self.drop_path}.")
        if self.remat not in get_args(Remat):
            raise ValueError(f"remat must be one of {get_args(Remat)}, got {self.remat!r}.")
        if self.aux_tap not in get_args(AuxTap):
            raise ValueError(f"aux_tap must be one of {get_args(AuxTap)}, got {self.aux_tap!r}.")


# Fields that say how a model is run and not what it is.
RUN_TIME_FIELDS = ("remat", "scan")

_T = RMTConfig(
    embed_dims=(64, 128, 256, 512),
    depths=(2, 2, 8, 2),
    num_heads=(4, 4, 8, 16),
    mlp_ratios=(3, 3, 3, 3),
    decay_spans=(4, 4, 6, 6),
    decomposed=(True, True, False, False),
    drop_path=0.1,
)
_S = RMTConfig(
    embed_dims=(64, 128, 256, 512),
    depths=(3, 4, 18, 4),
    num_heads=(4, 4, 8, 16),
    mlp_ratios=(4, 4, 3, 3),
    decay_spans=(4, 4, 6, 6),
    drop_path=0.15,
)
_B = RMTConfig(
    embed_dims=(80, 160, 320, 512),
    depths=(4, 8, 25, 8),
    num_heads=(5, 5, 10, 16),
    mlp_ratios=(4, 4, 3, 3),
    decay_spans=(5, 5, 6, 6),
    layer_scale=(None, None, 1e-6, 1e-6),
    drop_path=0.4,
)
_L = RMTConfig(
    embed_dims=(112, 224, 448, 640),
    depths=(4, 8, 25, 8),
    num_heads=(7, 7, 14, 20),
    mlp_ratios=(4, 4, 3, 3),
    decay_spans=(6, 6, 6, 6),
    layer_scale=(None, None, 1e-6, 1e-6),
    drop_path=0.5,
)
_NANO = RMTConfig(
    embed_dims=(24, 48, 96, 128),
    depths=(1, 1, 2, 1),
    num_heads=(2, 4, 6, 8),
    mlp_ratios=(2, 2, 2, 2),
    decay_spans=(4, 4, 6, 6),
    proj_dim=256,
)

VARIANTS: dict[str, RMTConfig] = {
    "rmt_t": _T,
    "rmt_s": _S,
    "rmt_b": _B,
    "rmt_l": _L,
    "rmt_s_star": dataclasses.replace(_S, aux_head=True),
    "rmt_b_star": dataclasses.replace(_B, aux_head=True),
    "rmt_l_star": dataclasses.replace(_L, aux_head=True),
    "rmt_nano": _NANO,  # ours, for demonstrations and tests; not in the paper
}


def list_models() -> list[str]:
    """Names that `create_model` takes, the paper's first."""
    return list(VARIANTS)


def variant(name: str, **overrides: Any) -> RMTConfig:
    """Configuration of a named model with some of its fields replaced.

    Raises:
        ValueError: unknown name or field (the nearest known one is named), or numbers that make no model.
    """
    if name not in VARIANTS:
        raise ValueError(f"Unknown model {name!r}.{_nearest(name, VARIANTS)} Known models: {', '.join(VARIANTS)}.")
    fields = [field.name for field in dataclasses.fields(RMTConfig)]
    for key in overrides:
        if key not in fields:
            raise ValueError(f"Unknown architecture field {key!r}.{_nearest(key, fields)} Known: {', '.join(fields)}.")
    return dataclasses.replace(VARIANTS[name], **overrides)


def _nearest(name: str, known: Any) -> str:
    match = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {match[0]!r}?" if match else ""
