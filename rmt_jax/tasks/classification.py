"""Image classification: soft targets, mixing, token labels, distillation; top-1 and top-5."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float, UInt8

from rmt_jax.models import Classifier, RMTConfig
from rmt_jax.ops import blend, box_share, random_erasing, token_targets
from rmt_jax.tasks.accuracy import TopK
from rmt_jax.tasks.distillation import Teacher
from rmt_jax.tasks.losses import binary_cross_entropy, cross_entropy, smooth_labels
from rmt_jax.tasks.mixing import MixConfig, draw_token_boxes, mix_pictures

AUX_LOSS_WEIGHT = 0.5
TOKEN_PIXELS = 32  # side of the square of pixels that a token of the last stage stands for

LOSSES = {"cross_entropy": cross_entropy, "bce": binary_cross_entropy}

Batch = Mapping[str, Array]


@dataclasses.dataclass(frozen=True)
class Classification:
    """The task: batches of {"image": uint8 [batch height width 3], "label": int [batch]}.

    Batches for token labelling also have {"label_scores": [batch 5 rows columns], "label_ids": likewise, "crop_box":
    [batch 4], (top, left, height, width) of the crop as fractions of the picture}.

    Attributes:
        model: architecture; its number of classes is the data set's.
        dtype: type to compute in.
        mean: of each colour, in [0, 1], subtracted on the device.
        std: of each colour, divided by.
        label_smoothing: share of the target that is spread over all classes.
        loss_kind: "cross_entropy" of the softmax, or "bce", the binary cross entropy of every class.
        erasing: probability of a training picture to have a box erased.
        mix: mixup, CutMix or mix-token.
        upstream_crops: cut label maps as upstream does, see `token_targets`.
        teacher: to learn from beside the labels.
    """

    model: RMTConfig
    dtype: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    label_smoothing: float = 0.0
    loss_kind: Literal["cross_entropy", "bce"] = "cross_entropy"
    erasing: float = 0.0
    mix: MixConfig = dataclasses.field(default_factory=MixConfig)
    upstream_crops: bool = False
    teacher: Teacher | None = None

    @property
    def inseparable(self) -> int:
        """Consecutive samples that must be computed together: mix-token's exchange takes place inside the model."""
        return self.mix.group if self.mix.mix_token else 1

    def init_model(self, rngs: nnx.Rngs) -> Classifier:
        """A classifier with fresh weights, in training mode."""
        return Classifier(self.model, dtype=jnp.dtype(self.dtype), rngs=rngs)

    def prepare(self, batch: Batch, key: Array, frozen: Any = None) -> dict[str, Array]:
        """What training computes from a whole batch before any gradient: random changes of the pictures, and targets.

        Returns {"image": normalised floats, "target": [batch classes]}; with token labels also "token_target" [batch
        rows columns classes], with mix-token "boxes" [groups 4], with a teacher its "teacher_logits".

        Args:
            batch: as the data come.
            key: of all draws.
            frozen: the teacher's {"params", "batch_stats"}.
        """
        erase_key, mix_key = jax.random.split(key)
        images = normalize(batch["image"], self.mean, self.std)
        if self.erasing:
            images = random_erasing(erase_key, images, self.erasing)
        if "label_scores" in batch:
            prepared = self._token_targets(batch, rows=images.shape[1] // TOKEN_PIXELS)
        else:
            prepared = {"target": smooth_labels(batch["label"], self.model.num_classes, self.label_smoothing)}
        if self.mix.mixes_pictures:
            images, prepared["target"] = mix_pictures(mix_key, images, prepared["target"], self.mix)
        if self.mix.mix_token:
            grid = images.shape[1] // TOKEN_PIXELS, images.shape[2] // TOKEN_PIXELS
            prepared["boxes"] = draw_token_boxes(mix_key, len(images) // self.mix.group, *grid)
            prepared["target"] = blend(prepared["target"], 1 - box_share(prepared["boxes"], *grid))
        if self.teacher is not None:
            prepared["teacher_logits"] = self.teacher.logits(frozen, images)
        return prepared | {"image": images}

    def _token_targets(self, batch: Batch, rows: int) -> dict[str, Array]:
        crop, tokens = token_targets(
            batch["label_scores"],
            batch["label_ids"],
            batch["crop_box"],
            self.model.num_classes,
            size=rows,
            smoothing=self.label_smoothing,
            upstream_crops=self.upstream_crops,
        )
        return {"target": crop, "token_target": tokens}

    def loss(self, model: Classifier, batch: Batch, rngs: nnx.Rngs) -> tuple[Array, dict[str, Array]]:
        """The loss of what `prepare` made, or of a part of it.

        A starred model adds half the mean loss of its tokens, each against its own target where there are token labels,
        else against the picture's.
        """
        outputs = model(batch["image"], rngs=rngs, mix_boxes=batch.get("boxes"))
        logits, *aux = outputs if isinstance(outputs, tuple) else (outputs,)
        measure, target = LOSSES[self.loss_kind], batch["target"]
        loss = measure(logits, target)
        for tokens in aux:
            loss += AUX_LOSS_WEIGHT * measure(tokens, batch.get("token_target", target[:, None, None]))
        if self.teacher is not None:
            weight = self.teacher.config.weight
            loss = (1 - weight) * loss + weight * self.teacher.loss(logits, batch["teacher_logits"])
        right = logits.argmax(axis=-1) == target.argmax(axis=-1)
        return loss, {"loss": loss, "top1": 100 * right.mean(dtype=jnp.float32)}

    def predict(self, model: Classifier, batch: Batch) -> dict[str, Array]:
        """Logits, with the labels and the mask of real samples."""
        logits = model(normalize(batch["image"], self.mean, self.std))
        return {"logits": jnp.asarray(logits), "label": batch["label"], "mask": batch["mask"]}

    def metric(self) -> TopK:
        """An empty metric."""
        return TopK(self.model.num_classes)


def normalize(
    images: UInt8[Array, "batch height width 3"], mean: tuple[float, float, float], std: tuple[float, float, float]
) -> Float[Array, "batch height width 3"]:
    """(images / 255 - mean) / std, in float32."""
    return (images.astype(jnp.float32) / 255 - jnp.asarray(mean)) / jnp.asarray(std)
