"""Learning rate: warm-up and cosine, one value for each epoch, exactly as upstream's logs have it."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """Warm-up and cosine.

    Attributes:
        warmup_epochs: length of the linear rise.
        warmup_lr: where it starts.
        min_lr: where the cosine ends.
    """

    warmup_epochs: int = 5
    warmup_lr: float = 1e-6
    min_lr: float = 1e-5


def learning_rates(config: ScheduleConfig, peak: float, epochs: int) -> np.ndarray:
    """Learning rate in force during each epoch, float64 [epochs].

    timm's scheduler, which upstream steps at the end of each epoch with that epoch's number: it lags by one, so
    epochs 0 and 1 both run at `warmup_lr`, and the cosine's clock includes the warm-up.
    """
    clock = np.maximum(np.arange(epochs) - 1.0, 0.0)
    warmup = config.warmup_lr + clock * (peak - config.warmup_lr) / max(config.warmup_epochs, 1)
    cosine = config.min_lr + 0.5 * (peak - config.min_lr) * (1 + np.cos(np.pi * clock / epochs))
    return np.where(clock < config.warmup_epochs, warmup, cosine)
