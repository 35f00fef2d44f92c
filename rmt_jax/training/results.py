"""Accuracies in words and on disk: the line after each evaluation, the table at the end, evaluation.json."""

import json
import math
import operator
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rmt_jax.tasks.accuracy import TopK
from rmt_jax.training.confusion import plot_confusion
from rmt_jax.training.eval_setup import EvalSetup
from rmt_jax.training.metrics import read_metrics, replace_file

WEIGHTS = {"val": "raw", "val_ema": "EMA"}  # prefix of the metrics -> name of the weights
MOST_PICTURED_CLASSES = 50  # with more, the cells of confusion.png are too small to be told apart


def metric_values(metrics: Mapping[str, TopK]) -> dict[str, float]:
    """{"val/top1": ..., "val_ema/top1": ...} of metrics by their prefix."""
    return {f"{prefix}/{name}": value for prefix, metric in metrics.items() for name, value in metric.compute().items()}


def evaluation_line(epoch: float, values: Mapping[str, float]) -> str:
    """What a log says after an evaluation."""
    parts = [
        f"{name} top-1 {values[f'{prefix}/top1']:.2f} %, loss {values[f'{prefix}/loss']:.4f}"
        for prefix, name in WEIGHTS.items()
    ]
    return f"epoch {epoch:g}: {'; '.join(parts)}"


def result_rows(
    values: Mapping[str, Any], name: str, labels: Mapping[str, str] = WEIGHTS
) -> dict[str, dict[str, float]]:
    """Rows of the table for one evaluation: {"NAME, raw": {"top1": ..., "loss": ...}, "NAME, EMA": {...}}.

    labels: {prefix of the metrics: name of the weights}, one row each.
    """
    return {f"{name}, {label}": _row(values, prefix) for prefix, label in labels.items()}


def run_results(workdir: pathlib.Path) -> dict[str, dict[str, float]]:
    """Final and best evaluation of raw and EMA weights, from metrics.jsonl; of equal ones the last is the best."""
    evaluations = [row for row in read_metrics(workdir / "metrics.jsonl") if "val/top1" in row]
    if not evaluations:
        return {}
    best = {}
    for prefix, label in WEIGHTS.items():
        rising = sorted(evaluations, key=operator.itemgetter(f"{prefix}/top1"))  # of equal ones the latest comes last
        best[f"best, {label}"] = _row(rising[-1], prefix)
    return result_rows(evaluations[-1], "final") | best


def lowest_classes(metric: TopK, class_names: Sequence[str], limit: int = 5) -> dict[str, str]:
    """The classes with the lowest accuracy, in words: {name: "75.00 % of 36 pictures, 6 taken for 'eight'"}."""
    accuracy, words = metric.class_accuracy, {}
    ascending = np.argsort(accuracy, kind="stable")  # NaN, of classes without pictures, comes last
    for label in ascending[:limit]:
        count = int(metric.class_counts[label])
        if not count:
            break
        wrong = metric.confusion[label].copy()
        wrong[label] = 0
        other = int(wrong.argmax())
        mistaken = f", {wrong[other]:,} taken for {class_names[other]!r}" if wrong[other] else ""
        words[class_names[label]] = f"{accuracy[label]:.2f} % of {count:,} picture{'s' * (count > 1)}{mistaken}"
    return words


def write_evaluation(
    workdir: pathlib.Path, setup: EvalSetup, metrics: Mapping[str, TopK], *, source: str, step: int | None, weights: str
) -> None:
    """Write evaluation.json and, where the classes are few, confusion.png; an older confusion.png goes otherwise.

    Args:
        workdir: the folder, which exists.
        setup: of the evaluation.
        metrics: by prefix; of several the moving average is the one in detail.
        source: what was evaluated.
        step: of the training, where it is known.
        weights: which weights are the ones in detail, "ema", "raw" or "unstated".
    """
    metric = metrics.get("val_ema", metrics["val"])
    pictures, classes = setup.eval_loader.source, setup.class_names
    content = {
        "source": source,
        "step": step,
        "weights": weights,
        "data": setup.config.data.name,
        "split": setup.config.data.eval_split,
        "pictures": metric.count,
        "unreadable": len(setup.eval_loader.unreadable),
        **_figures(metric),
        "raw": _figures(metrics["val"]) if "val_ema" in metrics else None,
        "classes": {
            name: {"accuracy": _number(accuracy), "count": int(count)}
            for name, accuracy, count in zip(classes, metric.class_accuracy, metric.class_counts, strict=True)
        },
    }
    replace_file(workdir / "evaluation.json", (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())
    picture = workdir / "confusion.png"
    if len(classes) <= MOST_PICTURED_CLASSES:
        title = f"{pictures.name}: top-1 {metric.compute()['top1']:.2f} % of {metric.count:,} pictures"
        plot_confusion(metric.confusion, classes, title, picture)
    else:
        picture.unlink(missing_ok=True)


def _figures(metric: TopK) -> dict[str, float | None]:
    values = metric.compute()
    names = {"top1": "top1", "top5": "top5", "loss": "loss", "mean_per_class": "mean_per_class_accuracy"}
    return {name: _number(values[key]) for key, name in names.items()}


def _number(value: float) -> float | None:
    """JSON has no NaN nor infinity."""
    return float(value) if math.isfinite(value) else None


def _row(values: Mapping[str, Any], prefix: str) -> dict[str, float]:
    row = {key: values[f"{prefix}/{key}"] for key in ("top1", "top5", "loss")}
    return row | ({"epoch": values["epoch"]} if "epoch" in values else {})
