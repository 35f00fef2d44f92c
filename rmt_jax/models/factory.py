"""Models by name."""

from collections.abc import Callable
from typing import Any, Literal, TypeVar, get_args, overload

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from rmt_jax.models.classifier import Classifier
from rmt_jax.models.detection import DETECTORS, DetectionHead, Detector, MaskRCNN, RetinaNet, check_detector
from rmt_jax.models.rmt import Backbone
from rmt_jax.models.segmentation import SegmentationHead, Segmentor
from rmt_jax.models.variants import RMTConfig, variant

Model = TypeVar("Model", bound=nnx.Module)
AnyModel = Classifier | Backbone | Segmentor | RetinaNet | MaskRCNN
ModelTask = Literal["classification", "backbone", "segmentation", "detection"]
Head = SegmentationHead | DetectionHead

# Of the data set that the paper has for each task.
NUM_CLASSES = {"classification": 1000, "segmentation": 150, "detection": 80}


@overload
def create_model(
    name: str,
    num_classes: int | None = ...,
    *,
    task: Literal["classification"] = ...,
    drop_path: float | None = ...,
    dtype: DTypeLike = ...,
    rngs: nnx.Rngs | None = ...,
    **overrides: Any,
) -> Classifier: ...


@overload
def create_model(
    name: str,
    num_classes: int | None = ...,
    *,
    task: Literal["backbone"],
    drop_path: float | None = ...,
    dtype: DTypeLike = ...,
    rngs: nnx.Rngs | None = ...,
    **overrides: Any,
) -> Backbone: ...


@overload
def create_model(
    name: str,
    num_classes: int | None = ...,
    *,
    task: Literal["segmentation"],
    head: SegmentationHead,
    dropout: float = ...,
    drop_path: float | None = ...,
    dtype: DTypeLike = ...,
    rngs: nnx.Rngs | None = ...,
    **overrides: Any,
) -> Segmentor: ...


@overload
def create_model(
    name: str,
    num_classes: int | None = ...,
    *,
    task: Literal["detection"],
    head: Literal["retinanet"],
    drop_path: float | None = ...,
    dtype: DTypeLike = ...,
    rngs: nnx.Rngs | None = ...,
    **overrides: Any,
) -> RetinaNet: ...


@overload
def create_model(
    name: str,
    num_classes: int | None = ...,
    *,
    task: Literal["detection"],
    head: Literal["mask_rcnn", "cascade_mask_rcnn"],
    drop_path: float | None = ...,
    dtype: DTypeLike = ...,
    rngs: nnx.Rngs | None = ...,
    **overrides: Any,
) -> MaskRCNN: ...


def create_model(
    name: str,
    num_classes: int | None = None,
    *,
    task: ModelTask = "classification",
    head: Head | None = None,
    dropout: float | None = None,
    drop_path: float | None = None,
    dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs | None = None,
    **overrides: Any,
) -> AnyModel:
    """A model with fresh weights, in training mode.

    Args:
        name: one of `list_models()`.
        num_classes: outputs of the head, and of the auxiliary head of starred models and UperNets, the background not
            counted; None for 1000, of segmentation 150, of detection 80, as ImageNet-1k, ADE20K and COCO have.
        task: "classification" for logits, "backbone" for the four maps at strides 4, 8, 16, 32, "segmentation" for
            logits of every position at stride 4, "detection" for those of anchors and regions.
        head: of segmentation, "semantic_fpn" or "upernet"; of detection, "retinanet", "mask_rcnn" or
            "cascade_mask_rcnn".
        dropout: rate before the last layer of segmentation heads; None for upstream's 0.1.
        drop_path: rate of the last block; None for the variant's own.
        dtype: type to compute in, float32 or bfloat16. Parameters are float32; norms, softmax, rotary phases and decay
            are computed in float32.
        rngs: draws the weights; nnx.Rngs(0) where None.
        **overrides: any other field of `RMTConfig`, such as depths=(1, 1, 1, 1) or remat="full".

    Raises:
        ValueError: unknown name, task, head or field, a head or dropout where the task has none, or numbers that make
            no model.
    """
    if drop_path is not None:
        overrides["drop_path"] = drop_path
    if num_classes is None:
        num_classes = NUM_CLASSES.get(task, NUM_CLASSES["classification"])
    config = variant(name, num_classes=num_classes, **overrides)
    return build_model(config, task, head, dropout=dropout, dtype=dtype, rngs=nnx.Rngs(0) if rngs is None else rngs)


def build_model(
    config: RMTConfig,
    task: str,
    head: str | None = None,
    *,
    dropout: float | None = None,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
) -> AnyModel:
    """The model of an architecture, a task and a head (see `create_model`), with fresh weights, in training mode.

    Raises:
        ValueError: an unknown task, head or type, or a head or dropout that the task does not have.
    """
    tasks = get_args(ModelTask)
    if task not in tasks:
        raise ValueError(f"task must be one of {', '.join(tasks)}, got {task!r}.")
    if dtype not in (jnp.float32, jnp.bfloat16, "float32", "bfloat16"):
        raise ValueError(f"dtype must be float32 or bfloat16, got {dtype}.")
    dtype = jnp.dtype(dtype)
    if task == "segmentation":
        options: dict[str, Any] = {"head": head} | ({} if dropout is None else {"dropout": dropout})
        return Segmentor(config, **options, dtype=dtype, rngs=rngs)
    if dropout is not None:
        raise ValueError(f"dropout={dropout!r} is of task='segmentation', and the task is {task!r}.")
    if task == "detection":
        check_detector(config, head)
        return DETECTORS[str(head)](config, dtype=dtype, rngs=rngs)
    if head is not None:
        raise ValueError(f"head={head!r} is of task='segmentation' or 'detection', and the task is {task!r}.")
    return (Classifier if task == "classification" else Backbone)(config, dtype=dtype, rngs=rngs)


def task_of(model: AnyModel) -> tuple[str, str | None]:
    """(task, head) as `build_model` takes them; the head is None of all but segmentors and detectors."""
    if isinstance(model, Segmentor):
        return "segmentation", model.head_name
    if isinstance(model, Detector):
        return "detection", model.HEAD
    return "classification" if isinstance(model, Classifier) else "backbone", None


def abstract_model(build: Callable[[nnx.Rngs], Model]) -> Model:
    """The model that `build` makes, with shapes and types in the place of arrays; nothing is computed.

    Args:
        build: makes a model from rngs, such as lambda rngs: create_model("rmt_l", rngs=rngs).
    """
    return nnx.eval_shape(lambda: build(_OneKey()))


class _OneKey(nnx.Rngs):
    """The same key for every draw: nothing is drawn under `eval_shape`, and nnx.Rngs takes quadratic time there."""

    def params(self) -> jax.Array:
        return jax.random.key(0)
