"""Learning rates of a whole run: cosine as upstream's classifiers have it, polynomial as its segmentors, or steps down
as its detectors.
"""

import dataclasses
from typing import Literal

import numpy as np


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """How the learning rate moves.

    Attributes:
        kind: "cosine", one value for each epoch after a linear rise; "poly", one for each step, times a linear rise;
            "drops", the same value but for a tenth of it after some epochs, times a linear rise.
        warmup_epochs: cosine: length of the linear rise.
        warmup_lr: cosine: where it starts.
        min_lr: cosine, poly: where the learning rate ends.
        power: poly: of the share of steps that are left.
        warmup_steps: poly, drops: length of the rise.
        warmup_ratio: poly, drops: where it starts, as a share of the learning rate.
        drop_epochs: drops: after how many epochs the learning rate becomes a tenth, each.
    """

    kind: Literal["cosine", "poly", "drops"] = "cosine"
    warmup_epochs: int = 5
    warmup_lr: float = 1e-6
    min_lr: float = 1e-5
    power: float = 1.0
    warmup_steps: int = 0
    warmup_ratio: float = 1e-6
    drop_epochs: tuple[int, ...] = (8, 11)

    def describe(self) -> str:
        """In words, for the summary."""
        rise = f"{self.warmup_steps:,} steps of warm-up, " if self.warmup_steps else ""
        if self.kind == "poly":
            return f"{rise}polynomial of power {self.power:g} to {self.min_lr:g}"
        if self.kind == "drops":
            return f"{rise}a tenth after epochs {', '.join(map(str, self.drop_epochs))}"
        return f"{self.warmup_epochs} epochs of warm-up, cosine to {self.min_lr:g}"


@dataclasses.dataclass(frozen=True)
class LearningRates:
    """The learning rate of every step.

    Attributes:
        table: float64, in the order of the steps.
        steps: that each entry is for; the last is for all that come after.
    """

    table: np.ndarray
    steps: int

    def at(self, step: int) -> float:
        """Of a step, counted from 0."""
        return float(self.table[min(step // self.steps, len(self.table) - 1)])


def learning_rates(config: ScheduleConfig, peak: float, total_steps: int, steps_per_epoch: int) -> LearningRates:
    """Of a run of `total_steps`, of which cosine sees whole epochs."""
    if config.kind == "poly":
        return LearningRates(polynomial(config, peak, total_steps), 1)
    if config.kind == "drops":
        return LearningRates(drops(config, peak, total_steps, steps_per_epoch), 1)
    return LearningRates(cosine(config, peak, -(-total_steps // steps_per_epoch)), steps_per_epoch)


def cosine(config: ScheduleConfig, peak: float, epochs: int) -> np.ndarray:
    """Learning rate in force during each epoch, float64 [epochs].

    timm's scheduler, which upstream steps at the end of each epoch with that epoch's number: it lags by one, so
    epochs 0 and 1 both run at `warmup_lr`, and the cosine's clock includes the warm-up.
    """
    clock = np.maximum(np.arange(epochs) - 1.0, 0.0)
    warmup = config.warmup_lr + clock * (peak - config.warmup_lr) / max(config.warmup_epochs, 1)
    cosine = config.min_lr + 0.5 * (peak - config.min_lr) * (1 + np.cos(np.pi * clock / epochs))
    return np.where(clock < config.warmup_epochs, warmup, cosine)


def polynomial(config: ScheduleConfig, peak: float, steps: int) -> np.ndarray:
    """Learning rate of each step, float64 [steps], as mmcv's "poly" policy with linear warm-up."""
    step = np.arange(steps, dtype=np.float64)
    rates = config.min_lr + (peak - config.min_lr) * (1 - step / steps) ** config.power
    return rates * _rise(config, step)


def drops(config: ScheduleConfig, peak: float, steps: int, steps_per_epoch: int) -> np.ndarray:
    """Learning rate of each step, float64 [steps], as mmcv's "step" policy with linear warm-up."""
    step = np.arange(steps, dtype=np.float64)
    passed = sum(step // steps_per_epoch >= epoch for epoch in config.drop_epochs)
    return peak * 0.1**passed * _rise(config, step)


def _rise(config: ScheduleConfig, step: np.ndarray) -> np.ndarray:
    """Share of the learning rate in force at each step: mmcv's linear warm-up."""
    missing = np.maximum(1 - step / max(config.warmup_steps, 1), 0) * (1 - config.warmup_ratio)
    return np.where(step < config.warmup_steps, 1 - missing, 1.0)
