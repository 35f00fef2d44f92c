"""One pass over the evaluation split with one or several sets of weights."""

from collections.abc import Callable, Mapping

import jax
import numpy as np
from jax import Array
from jax.sharding import NamedSharding

from rmt_jax.data import EvalLoader
from rmt_jax.tasks import Task
from rmt_jax.training.state import Tree

PredictStep = Callable[[Tree, Mapping[str, Array]], dict[str, Array]]


def evaluate(
    task: Task,
    predict_step: PredictStep,
    weights: Mapping[str, Tree],
    loader: EvalLoader,
    sharding: NamedSharding,
) -> dict[str, float]:
    """Metrics of each set of weights, such as {"val/top1": ..., "val_ema/top1": ...}; every picture is read once.

    Args:
        task: gives the metric.
        predict_step: compiled, its outputs replicated.
        weights: {prefix of the metric's names: {params, batch_stats}}.
        loader: batches of this process.
        sharding: of a batch.
    """
    metrics = {prefix: task.metric() for prefix in weights}
    for local in loader:
        batch = put_batch(local, sharding)
        outputs = {prefix: predict_step(tree, batch) for prefix, tree in weights.items()}
        for prefix, output in outputs.items():
            metrics[prefix].add(jax.device_get(output))
    return {f"{prefix}/{name}": value for prefix, metric in metrics.items() for name, value in metric.compute().items()}


def predict_pictures(
    predict_step: PredictStep, weights: Tree, loader: EvalLoader, sharding: NamedSharding, limit: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The first `limit` or so pictures with labels and class probabilities, for a figure.

    Returns:
        (images uint8 [n height width 3], labels [n], probabilities [n classes]).
    """
    images: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    probabilities: list[np.ndarray] = []
    for local in loader:
        output = jax.device_get(predict_step(weights, put_batch(local, sharding)))
        start = jax.process_index() * len(local["mask"])
        logits = output["logits"][start : start + len(local["mask"])]
        images.append(local["image"][local["mask"]])
        labels.append(local["label"][local["mask"]])
        probabilities.append(np.asarray(jax.nn.softmax(logits[local["mask"]], axis=-1)))
        if sum(map(len, labels)) >= limit:
            break
    return np.concatenate(images), np.concatenate(labels), np.concatenate(probabilities)


def put_batch(batch: Mapping[str, np.ndarray], sharding: NamedSharding) -> dict[str, Array]:
    """The global batch that the processes' own parts make up, on the devices."""
    return {key: jax.make_array_from_process_local_data(sharding, value) for key, value in batch.items()}
