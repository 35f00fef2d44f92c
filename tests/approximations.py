"""What a detector's approximations change: features, and average precision.

    python -m tests.approximations

The notebooks' Mask R-CNN finds digits in the 200 test pictures, whose longer side is 160: as evaluation does it, each
on a canvas of its own, and with each option that is not exact.
"""

import dataclasses
import functools
import json
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from rmt_jax.convert import read_weights
from rmt_jax.data.detection.digits import prepare_digits_detection
from rmt_jax.data.detection.transforms import padded_size, place_image, scale_factor
from rmt_jax.data.resize import rescaled_size, resize_image
from rmt_jax.tasks import AveragePrecision, Detection, DetectionConfig
from rmt_jax.training.detection import found_in

WEIGHTS = pathlib.Path(__file__).parent.parent / "notebooks" / "rmt_nano_mask_rcnn_digits.safetensors"
STRIDE = 4  # of the finest map
CANVAS = (192, 192)  # larger than every picture


class Way(NamedTuple):
    """How pictures are evaluated, on canvases of their own or all on the same."""

    name: str
    config: DetectionConfig
    canvas: tuple[int, int] | None = None


EXACT = DetectionConfig(head="mask_rcnn")
WAYS = (
    Way("each picture alone", EXACT),
    Way("on a canvas of 192x192, `canvas=masked`", EXACT, CANVAS),
    Way("on a canvas of 192x192, `canvas=plain`", dataclasses.replace(EXACT, canvas="plain"), CANVAS),
    Way("`sampling_ratio=2`", dataclasses.replace(EXACT, sampling_ratio=2)),
)


def main() -> None:
    root, weights = prepare_digits_detection(), read_weights(str(WEIGHTS))
    data_set = json.loads((root / "annotations" / "instances_test.json").read_text())
    paths = [root / "test" / entry["file_name"] for entry in data_set["images"]]
    pictures = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    look, (graph, state) = weights.resizing, nnx.split(weights.to_model("float32"))
    exact: list[np.ndarray] = []
    print("| pictures of the digits | features' difference, relative | box AP | mask AP |\n|---|---|---|---|")
    for way in WAYS:
        task = Detection(weights.config, "float32", look.mean, look.std, way.config, fills_canvas=way.canvas is None)
        metric, features = AveragePrecision(data_set, masks=True), []
        for index, picture in enumerate(pictures):
            size = rescaled_size(*picture.shape[:2], look.scale)
            batch = place_image(resize_image(picture, size), way.canvas or padded_size(size))
            batch["scale_factor"] = scale_factor(picture.shape[:2], size)
            outputs = jax.device_get(run(task, graph, state, batch))
            height, width = batch["pad_size"] // STRIDE
            features.append(outputs["features"][0, :height, :width].ravel())
            metric.add({"index": index, **found_in(outputs, 0, picture.shape[:2])._asdict()})
        exact = exact or features
        scores = metric.compute()
        print(f"| {way.name} | {difference(features, exact):.1e} | {scores['box_AP']:.1f} | {scores['mask_AP']:.1f} |")


@functools.partial(jax.jit, static_argnums=(0, 1))
def run(task: Detection, graph: Any, state: Any, picture: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """What is found in one picture, and the finest map of the pyramid."""
    model: Any = nnx.merge(graph, state)
    batch = {name: jnp.asarray(array)[None] for name, array in picture.items()}
    valid = batch["pad_size"] if not task.fills_canvas and task.config.canvas == "masked" else None
    levels = model.features(task.prepare(batch, jax.random.key(0))["image"], valid=valid)
    return {**task.predict(model, batch), "features": levels[0]}


def difference(features: list[np.ndarray], exact: list[np.ndarray]) -> float:
    """Root of the mean square, relative to that of the exact ones."""
    one, other = np.concatenate(features), np.concatenate(exact)
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


if __name__ == "__main__":
    main()
