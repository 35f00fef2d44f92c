"""Evaluations in words and on disk: the line after each one, the table at the end, evaluation.json."""

import json
import operator
import pathlib
from collections.abc import Mapping
from typing import Any

from rmt_jax.tasks import Metric
from rmt_jax.training.eval_setup import EvalSetup
from rmt_jax.training.kinds import Kind
from rmt_jax.training.metrics import read_metrics, replace_file

WEIGHTS = {"val": "raw", "val_ema": "EMA"}  # prefix of the metrics -> name of the weights


def metric_values(metrics: Mapping[str, Metric]) -> dict[str, float]:
    """{"val/top1": ..., "val_ema/top1": ...} of metrics by their prefix."""
    return {f"{prefix}/{name}": value for prefix, metric in metrics.items() for name, value in metric.compute().items()}


def evaluation_line(kind: Kind, epoch: float, values: Mapping[str, float]) -> str:
    """What a log says after an evaluation."""
    parts = [f"{name} {kind.describe_values(_values(values, prefix))}" for prefix, name in WEIGHTS.items()]
    return f"epoch {epoch:g}: {'; '.join(parts)}"


def result_rows(
    kind: Kind, values: Mapping[str, Any], name: str, labels: Mapping[str, str] = WEIGHTS
) -> dict[str, dict[str, float]]:
    """Rows of the table for one evaluation: {"NAME, raw": {"top1": ..., "loss": ...}, "NAME, EMA": {...}}.

    labels: {prefix of the metrics: name of the weights}, one row each.
    """
    return {f"{name}, {label}": _row(kind, values, prefix) for prefix, label in labels.items()}


def run_results(kind: Kind, workdir: pathlib.Path) -> dict[str, dict[str, float]]:
    """Final and best evaluation of raw and EMA weights, from metrics.jsonl; of equal ones the last is the best."""
    evaluations = [row for row in read_metrics(workdir / "metrics.jsonl") if f"val/{kind.BEST}" in row]
    if not evaluations:
        return {}
    best = {}
    for prefix, label in WEIGHTS.items():
        # Rising: of equal ones the latest comes last.
        best[f"best, {label}"] = _row(
            kind, sorted(evaluations, key=operator.itemgetter(f"{prefix}/{kind.BEST}"))[-1], prefix
        )
    return result_rows(kind, evaluations[-1], "final") | best


def write_evaluation(
    workdir: pathlib.Path,
    setup: EvalSetup,
    metrics: Mapping[str, Metric],
    *,
    source: str,
    step: int | None,
    weights: str,
) -> None:
    """Write evaluation.json, and what pictures the task has of an evaluation.

    Args:
        workdir: the folder, which exists.
        setup: of the evaluation.
        metrics: by prefix; of several the moving average is the one in detail.
        source: what was evaluated.
        step: of the training, where it is known.
        weights: which weights are the ones in detail, "ema", "raw" or "unstated".
    """
    metric, raw = metrics.get("val_ema", metrics["val"]), metrics["val"] if "val_ema" in metrics else None
    content = {
        "source": source,
        "step": step,
        "weights": weights,
        "data": setup.config.data.name,
        "split": setup.config.data.eval_split,
        "unreadable": len(setup.eval_loader.unreadable),
        **setup.kind.write_evaluation(workdir, metric, raw, setup.eval_loader.source.name, setup.class_names),
    }
    replace_file(workdir / "evaluation.json", (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def _values(values: Mapping[str, Any], prefix: str) -> dict[str, float]:
    return {key.removeprefix(f"{prefix}/"): value for key, value in values.items() if key.startswith(f"{prefix}/")}


def _row(kind: Kind, values: Mapping[str, Any], prefix: str) -> dict[str, float]:
    row = {key: values[f"{prefix}/{key}"] for key in kind.SHOWN if f"{prefix}/{key}" in values}
    return row | ({"epoch": values["epoch"]} if "epoch" in values else {})
