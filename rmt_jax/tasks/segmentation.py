"""Semantic segmentation: a class for every pixel; mean intersection over union."""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float, Int, UInt8

from rmt_jax.models import RMTConfig, SegmentationHead, Segmentor
from rmt_jax.ops import bilinear_matrix, resize_bilinear
from rmt_jax.tasks.classification import normalize
from rmt_jax.tasks.iou import IGNORE_LABEL, MeanIoU

Batch = Mapping[str, Array]
Logits = Float[Array, "batch _ _ classes"]
Positions = Float[Array, "batch _ _"]

_SLAB = 64  # rows of a picture that are classified at once: all of them, with every class, may be gigabytes
_SIZES = 128  # original heights and widths are rounded up to multiples, so that few programs are compiled


@dataclasses.dataclass(frozen=True)
class SegmentationConfig:
    """Head, loss and prediction; the defaults are upstream's.

    Attributes:
        head: "semantic_fpn" or "upernet".
        dropout: of channels before the last convolution of each head.
        aux_weight: of the auxiliary head's loss, where there is one.
        count_ignored: divide the loss by all pixels, as upstream does, rather than by those that have a label.
        mode: "whole" pictures, or overlapping windows that "slide" over them.
        window: height and width of a window; smaller pictures are one window.
        stride: of windows, down and to the right.
        flip: also predict the mirrored picture, and take the mean of the probabilities.
        overlays: pictures of which an evaluation saves the predicted classes in colours.
    """

    head: SegmentationHead = "upernet"
    dropout: float = 0.1
    aux_weight: float = 0.4
    count_ignored: bool = True
    mode: Literal["whole", "slide"] = "whole"
    window: tuple[int, int] = (512, 512)
    stride: tuple[int, int] = (341, 341)
    flip: bool = False
    overlays: int = 8

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise ValueError(f"segmentation.dropout={self.dropout}: expected a probability in [0, 1).")
        if self.aux_weight < 0:
            raise ValueError(f"segmentation.aux_weight={self.aux_weight}: expected 0 or more.")
        if min(self.window) < 32 or min(self.stride) < 1:
            raise ValueError(
                f"segmentation.window={self.window}, stride={self.stride}: expected windows of 32 pixels and more, and "
                f"strides of 1 and more."
            )
        if any(stride > side for stride, side in zip(self.stride, self.window, strict=True)):
            raise ValueError(
                f"segmentation.stride={self.stride} leaves gaps between windows of {self.window}: expected no more."
            )
        if self.overlays < 0:
            raise ValueError(f"segmentation.overlays={self.overlays}: expected 0 or more.")


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """The task. Training batches are those of `SegmentationTrainLoader`, for predictions see `predict`.

    Attributes:
        model: architecture; its number of classes is the data set's.
        dtype: type to compute in.
        mean: of each colour, in [0, 1], subtracted on the device.
        std: of each colour, divided by.
        config: head, loss and prediction.
    """

    model: RMTConfig
    dtype: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    config: SegmentationConfig = dataclasses.field(default_factory=SegmentationConfig)

    @property
    def inseparable(self) -> int:
        """Every picture for itself."""
        return 1

    def init_model(self, rngs: nnx.Rngs) -> Segmentor:
        """A segmentor with fresh weights, in training mode."""
        head, dropout = self.config.head, self.config.dropout
        return Segmentor(self.model, head, dropout=dropout, dtype=jnp.dtype(self.dtype), rngs=rngs)

    def prepare(self, batch: Batch, key: Array, frozen: Any = None) -> dict[str, Array]:
        """{"image": normalised floats, 0 beyond the picture as upstream pads it, "label": int32}."""
        del key, frozen  # all random changes are made where the pictures are loaded
        images = normalize(batch["image"], self.mean, self.std)
        inside = [
            jnp.arange(size) < batch["picture_size"][:, axis, None] for axis, size in enumerate(images.shape[1:3])
        ]
        inside_picture = inside[0][:, :, None] & inside[1][:, None, :]
        return {"image": jnp.where(inside_picture[..., None], images, 0), "label": batch["label"].astype(jnp.int32)}

    def loss(self, model: Segmentor, batch: Batch, rngs: nnx.Rngs) -> tuple[Array, dict[str, Array]]:
        """Cross entropy of the pixels, and of the auxiliary head's where there is one; see `pixel_loss`."""
        outputs = model(batch["image"], rngs=rngs)
        logits, *aux = outputs if isinstance(outputs, tuple) else (outputs,)
        loss, right = pixel_loss(logits, batch["label"], count_ignored=self.config.count_ignored)
        for other in aux:
            loss += (
                self.config.aux_weight * pixel_loss(other, batch["label"], count_ignored=self.config.count_ignored)[0]
            )
        return loss, {"loss": loss, "pixel_accuracy": 100 * right}

    def predict(self, model: Segmentor, batch: Batch) -> dict[str, Array]:
        """{"classes": uint8 [batch rows columns]}, the most likely class of each pixel of the original pictures.

        Logits are resized bilinearly to the size that the network saw and from there to the original one, as upstream
        does, in one step: the product of the two. So pictures of one shape need one program, whatever their original
        sizes.

        Args:
            model: in evaluation mode.
            batch: {"image": uint8 [batch height width 3], "image_rows": [batch rows map_height], "image_columns":
                [batch columns map_width]} of `device_batch`, and the same of "image_1", ... at further scales.
        """
        maps, positions = [], []
        for name in _pictures(batch):
            images = normalize(batch[name], self.mean, self.std)
            own = batch[f"{name}_rows"], batch[f"{name}_columns"]
            maps.append(self._logits(model, images))
            positions.append(own)
            if self.config.flip:
                maps.append(self._logits(model, images[:, :, ::-1])[:, :, ::-1])
                positions.append(own)
        return {"classes": most_likely(maps, positions)}

    def device_batch(self, local: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Of a batch of `SegmentationEvalLoader` what `predict` takes."""
        longest = [-(-int(side) // _SIZES) * _SIZES for side in local["original_size"].max(axis=0)]
        batch: dict[str, np.ndarray] = {}
        for name in _pictures(local):
            batch[name] = local[name]
            for what, axis in (("rows", 0), ("columns", 1)):
                side = local[name].shape[1 + axis]
                matrices = [_positions(self._map_side(side), side, int(size[axis])) for size in local["original_size"]]
                padded = [np.pad(matrix, ((0, longest[axis] - len(matrix)), (0, 0))) for matrix in matrices]
                batch[f"{name}_{what}"] = np.stack(padded)
        return batch

    def metric(self) -> MeanIoU:
        """An empty metric."""
        return MeanIoU(self.model.num_classes)

    def _map_side(self, side: int) -> int:
        """Of the logits of a picture with such a side."""
        return side if self.config.mode == "slide" else math.ceil(side / 4)

    def _logits(self, model: Segmentor, images: Float[Array, "batch height width 3"]) -> Logits:
        if self.config.mode == "whole":
            return jnp.asarray(model(images))
        return sliding_logits(lambda part: jnp.asarray(model(part)), images, self.config.window, self.config.stride)


def _pictures(batch: Mapping[str, Any]) -> list[str]:
    """Names of the pictures at all scales."""
    return sorted(name for name in batch if re.fullmatch(r"image(_\d+)?", name))


def pixel_loss(
    logits: Logits, label: Int[Array, "batch rows columns"], *, count_ignored: bool
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(mean cross entropy, share of the labelled pixels that are right) of logits resized to the label map.

    Pixels with label 255 add nothing to the sum. With `count_ignored` they are counted in what it is divided by.
    Source: mmseg `BaseDecodeHead.losses`.
    """
    scores = resize_bilinear(logits, label.shape[1:])
    labelled = label != IGNORE_LABEL
    known = jnp.where(labelled, label, 0)
    of_label = jnp.take_along_axis(scores, known[..., None], axis=-1)[..., 0]
    losses = jnp.where(labelled, jax.nn.logsumexp(scores, axis=-1) - of_label, 0)
    count = jnp.maximum(labelled.sum(), 1)
    right = jnp.where(labelled, scores.argmax(axis=-1) == known, False).sum() / count
    return losses.sum() / (label.size if count_ignored else count), right


def most_likely(
    maps: Sequence[Logits], positions: Sequence[tuple[Positions, Positions]]
) -> UInt8[Array, "batch rows columns"]:
    """The class with the largest logit at positions between those of a map; of several maps the mean probability.

    Args:
        maps: logits, of any sizes.
        positions: matrices for the rows and the columns of each, see `Segmentation.device_batch`; as many rows as
            slabs can be cut from.
    """
    product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)

    def classify(slab: list[Array]) -> Array:
        scores: Any = 0
        for logits, rows, (_, columns) in zip(maps, slab, positions, strict=True):
            at_rows = product("brh,bhwc->brwc", rows, logits)
            at_pixels = product("bow,brwc->broc", columns, at_rows)
            scores += at_pixels if len(maps) == 1 else jax.nn.softmax(at_pixels, axis=-1)
        return scores.argmax(axis=-1).astype(jnp.uint8)

    slabs = [rows.reshape(len(rows), -1, _SLAB, rows.shape[-1]).swapaxes(0, 1) for rows, _ in positions]
    classes = jax.lax.map(classify, slabs).swapaxes(0, 1)
    return classes.reshape(len(classes), -1, classes.shape[-1])


def sliding_logits(
    predict: Any, images: Float[Array, "batch height width 3"], window: tuple[int, int], stride: tuple[int, int]
) -> Logits:
    """Logits at the size of the pictures: the mean of those of all windows over a pixel.

    The last windows are moved back to end at the edge. Source: mmseg `EncoderDecoder.slide_inference`.
    """
    height, width = images.shape[1:3]
    starts = [
        sorted({min(start, max(side - part, 0)) for start in range(0, max(side - part, 0) + step, step)})
        for side, part, step in zip((height, width), window, stride, strict=True)
    ]
    total: Any = 0
    count = np.zeros((1, height, width, 1), np.float32)
    for top in starts[0]:
        for left in starts[1]:
            rows, columns = slice(top, top + window[0]), slice(left, left + window[1])
            part = images[:, rows, columns]
            logits = resize_bilinear(predict(part), part.shape[1:3])
            before_after = [(0, 0), (top, height - top - part.shape[1]), (left, width - left - part.shape[2]), (0, 0)]
            total += jnp.pad(logits, before_after)
            count[:, rows, columns] += 1
    return total / count


@functools.lru_cache(maxsize=4096)
def _positions(map_side: int, side: int, original: int) -> np.ndarray:
    """[original map_side]: from a map to the network's input, and from there to the original picture."""
    whole = np.eye(side, dtype=np.float64) if map_side == side else bilinear_matrix(map_side, side).astype(np.float64)
    return (bilinear_matrix(side, original).astype(np.float64) @ whole).astype(np.float32)
