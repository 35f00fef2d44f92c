"""RMT with its classification head, and with the token-level head of the starred models."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from rmt_jax.models.layers import BatchNorm, Linear
from rmt_jax.models.rmt import Backbone, Images, Map, Output
from rmt_jax.models.variants import RMTConfig
from rmt_jax.ops import swap_boxes

Logits = Float[Array, "batch classes"]
AuxLogits = Float[Array, "batch height width classes"]


class Classifier(nnx.Module):
    """RMT for image classification: backbone, projection, BatchNorm, SiLU, mean over positions, head.

    A starred model also has `aux_head`, a linear head on every position of the last stage.
    """

    def __init__(self, config: RMTConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        if config.extra_norms:
            raise ValueError("extra_norms belong to the backbone of detectors and segmentors: use task='backbone'.")
        self.backbone = Backbone(config, dtype=dtype, rngs=rngs)
        self.proj = Linear(config.embed_dims[-1], config.proj_dim, dtype=dtype, rngs=rngs)
        self.norm = BatchNorm(config.proj_dim, dtype=dtype, rngs=rngs)
        self.aux_head: Linear | None
        self.reset_classifier(config.num_classes, rngs=rngs)
        self.deterministic = False  # model.eval() sets it: inference output

    @property
    def config(self) -> RMTConfig:
        """The architecture."""
        return self.backbone.config

    def reset_classifier(self, num_classes: int, *, rngs: nnx.Rngs) -> None:
        """Replace the head, and a starred model's auxiliary head, by fresh ones for `num_classes`."""
        config, dtype = dataclasses.replace(self.backbone.config, num_classes=num_classes), self.backbone.dtype
        self.backbone.config = config
        self.head = Linear(config.proj_dim, num_classes, dtype=dtype, rngs=rngs)
        aux_features = config.embed_dims[-1] if config.aux_tap == "features" else config.proj_dim
        self.aux_head = Linear(aux_features, num_classes, dtype=dtype, rngs=rngs) if config.aux_head else None

    def freeze_backbone(self) -> None:
        """Put everything but the heads in evaluation mode, for a linear probe: fixed statistics, no drop path."""
        self.backbone.eval()
        self.norm.eval()

    def __call__(
        self, images: Images, *, rngs: nnx.Rngs | None = None, mix_boxes: Int[Array, "groups 4"] | None = None
    ) -> Logits | tuple[Logits, AuxLogits]:
        """Logits; of a starred model in training mode, (logits, logits of every token).

        In evaluation mode a starred model returns logits + 0.5 * the largest token logit of each class.

        Args:
            images: [batch height width 3] normalised floats, 32x32 pixels or more, square or not.
            rngs: draws the drop path in training mode.
            mix_boxes: mix-token (starred models in training mode): (top, left, bottom, right) in tokens of the
                last stage, the last two excluded, one box for each group of consecutive samples. After the stem it is
                exchanged between the group and its reverse, and the token logits are exchanged back.

        Returns:
            [batch classes], in float32; training mode of starred models: that and [batch height/32 width/32 classes].

        Raises:
            ValueError: images of another shape or type; no rngs where drop path needs them; a box where none works.
        """
        if mix_boxes is not None and (self.aux_head is None or self.deterministic):
            raise ValueError(
                "mix_boxes need a token-labelled model (rmt_s_star, rmt_b_star, rmt_l_star) in training mode; this one "
                + ("has no aux_head." if self.aux_head is None else "is in evaluation mode: call model.train().")
            )
        x = self.backbone(images, rngs=rngs, mix_boxes=mix_boxes)[-1]
        with jax.named_scope("head"):
            return self._outputs(x, mix_boxes)

    def _outputs(self, x: Map, mix_boxes: Int[Array, "groups 4"] | None) -> Logits | tuple[Logits, AuxLogits]:
        taps = self.taps(x)
        logits = self._pooled_logits(taps["activation"])
        if self.aux_head is None:
            return logits
        aux = self.aux_head(taps[self.config.aux_tap]).astype(jnp.float32)
        if self.deterministic:
            return logits + 0.5 * aux.max(axis=(1, 2))
        return logits, aux if mix_boxes is None else swap_boxes(aux, mix_boxes)

    def forward_features(self, images: Images, *, rngs: nnx.Rngs | None = None) -> Output:
        """Unpooled features: the last stage's output, [batch height/32 width/32 channels]."""
        return self.backbone(images, rngs=rngs)[-1]

    def forward_head(self, features: Map, *, pre_logits: bool = False) -> Float[Array, "batch outputs"]:
        """From `forward_features` to logits without the auxiliary head, or with pre_logits to the head's input."""
        x = self.taps(features)["activation"]
        return x.mean(axis=(1, 2)) if pre_logits else self._pooled_logits(x)

    def taps(self, features: Map) -> dict[str, Output]:
        """From `forward_features`, what the auxiliary head may read, by the names of `RMTConfig.aux_tap`."""
        proj = self.proj(features)
        norm = self.norm(proj)
        return {"features": features, "proj": proj, "norm": norm, "activation": nnx.silu(norm)}

    def _pooled_logits(self, x: Map) -> Logits:
        return self.head(x.mean(axis=(1, 2))).astype(jnp.float32)

    def set_view(self, *, deterministic: bool | None = None) -> None:
        """What `nnx.view` may change."""
        if deterministic is not None:
            self.deterministic = deterministic
