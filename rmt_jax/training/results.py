"""Accuracies in words: the line after each evaluation, the table at the end."""

import operator
import pathlib
from collections.abc import Mapping
from typing import Any

from rmt_jax.training.metrics import read_metrics

WEIGHTS = {"val": "raw", "val_ema": "EMA"}  # prefix of the metrics -> name of the weights


def evaluation_line(epoch: float, values: Mapping[str, float]) -> str:
    """What a log says after an evaluation."""
    parts = [
        f"{name} top-1 {values[f'{prefix}/top1']:.2f} %, loss {values[f'{prefix}/loss']:.4f}"
        for prefix, name in WEIGHTS.items()
    ]
    return f"epoch {epoch:g}: {'; '.join(parts)}"


def result_rows(values: Mapping[str, Any], name: str) -> dict[str, dict[str, float]]:
    """Rows of the table for one evaluation: {"NAME, raw": {"top1": ..., "loss": ...}, "NAME, EMA": {...}}."""
    return {f"{name}, {label}": _row(values, prefix) for prefix, label in WEIGHTS.items()}


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


def _row(values: Mapping[str, Any], prefix: str) -> dict[str, float]:
    return {key: values[f"{prefix}/{key}"] for key in ("top1", "top5", "loss")} | {"epoch": values["epoch"]}
