"""Image classification: soft-target cross entropy, top-1 and top-5."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float, Int, UInt8

from rmt_jax.models import Classifier, RMTConfig

AUX_LOSS_WEIGHT = 0.5


@dataclasses.dataclass(frozen=True)
class Classification:
    """The task: batches of {"image": uint8 [batch height width 3], "label": int [batch]}.

    Attributes:
        model: architecture; its number of classes is the data set's.
        dtype: type to compute in.
        mean: of each colour, in [0, 1], subtracted on the device.
        std: of each colour, divided by.
        label_smoothing: share of the target that is spread over all classes.
    """

    model: RMTConfig
    dtype: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    label_smoothing: float = 0.0

    def init_model(self, rngs: nnx.Rngs) -> Classifier:
        """A classifier with fresh weights, in training mode."""
        return Classifier(self.model, dtype=jnp.dtype(self.dtype), rngs=rngs)

    def loss(self, model: Classifier, batch: Mapping[str, Array], rngs: nnx.Rngs) -> tuple[Array, dict[str, Array]]:
        """Cross entropy with smoothed labels.

        A starred model adds half the mean cross entropy of its tokens, each against the picture's label.
        """
        outputs = model(normalize(batch["image"], self.mean, self.std), rngs=rngs)
        logits, *aux = outputs if isinstance(outputs, tuple) else (outputs,)
        targets = smooth_labels(batch["label"], self.model.num_classes, self.label_smoothing)
        loss = cross_entropy(logits, targets)
        for tokens in aux:
            loss += AUX_LOSS_WEIGHT * cross_entropy(tokens, targets[:, None, None])
        return loss, {"loss": loss, "top1": 100 * (logits.argmax(axis=-1) == batch["label"]).mean(dtype=jnp.float32)}

    def predict(self, model: Classifier, batch: Mapping[str, Array]) -> dict[str, Array]:
        """Logits, with the labels and the mask of real samples."""
        logits = model(normalize(batch["image"], self.mean, self.std))
        return {"logits": jnp.asarray(logits), "label": batch["label"], "mask": batch["mask"]}

    def metric(self) -> "TopK":
        """An empty metric."""
        return TopK()


class TopK:
    """Top-1 and top-5 accuracy in percent, and the mean cross entropy against the plain labels."""

    def __init__(self) -> None:
        self.count, self.top1, self.top5, self.loss = 0, 0, 0, 0.0

    def add(self, outputs: Mapping[str, np.ndarray]) -> None:
        """Take in {"logits" [batch classes], "label" [batch], "mask" [batch]}; padding does not count."""
        mask = outputs["mask"]
        logits, label = outputs["logits"][mask].astype(np.float64), outputs["label"][mask]
        true = np.take_along_axis(logits, label[:, None], axis=-1)
        # Ties go to the lower class, as in a stable sort. "Not lower" instead of "higher" so that NaN is never right.
        earlier = np.arange(logits.shape[-1]) < label[:, None]
        rank = (~(logits < true) & ((logits != true) | earlier)).sum(axis=-1)
        shifted = logits - logits.max(axis=-1, keepdims=True)
        self.count += len(label)
        self.top1 += int((rank < 1).sum())
        self.top5 += int((rank < 5).sum())
        log_sum = np.log(np.exp(shifted).sum(axis=-1))
        self.loss += float((log_sum - np.take_along_axis(shifted, label[:, None], axis=-1)[:, 0]).sum())

    def compute(self) -> dict[str, float]:
        """{"top1": percent, "top5": percent, "loss": nats}.

        Raises:
            ValueError: nothing was added.
        """
        if not self.count:
            raise ValueError("No sample to evaluate: the evaluation split is empty.")
        return {
            "top1": 100 * self.top1 / self.count,
            "top5": 100 * self.top5 / self.count,
            "loss": self.loss / self.count,
        }


def normalize(
    images: UInt8[Array, "batch height width 3"], mean: tuple[float, float, float], std: tuple[float, float, float]
) -> Float[Array, "batch height width 3"]:
    """(images / 255 - mean) / std, in float32."""
    return (images.astype(jnp.float32) / 255 - jnp.asarray(mean)) / jnp.asarray(std)


def smooth_labels(labels: Int[Array, " batch"], num_classes: int, smoothing: float) -> Float[Array, "batch classes"]:
    """Targets with smoothing / num_classes everywhere and the rest on the label (timm's convention)."""
    return jax.nn.one_hot(labels, num_classes) * (1 - smoothing) + smoothing / num_classes


def cross_entropy(
    logits: Float[Array, "batch *tokens classes"], targets: Float[Array, "batch *#tokens classes"]
) -> Float[Array, ""]:
    """Mean over all positions of -sum(targets * log softmax(logits)), in float32."""
    return -(targets * jax.nn.log_softmax(logits.astype(jnp.float32))).sum(axis=-1).mean()
