"""Random boxes for the tests of detection."""

import numpy as np


def random_boxes(count: int, seed: int, *, canvas: float = 100.0, sides: tuple[float, float] = (5, 50)) -> np.ndarray:
    """[count 4], float32, with centres on the canvas."""
    rng = np.random.default_rng(seed)
    center, half = rng.uniform(0, canvas, (count, 2)), rng.uniform(*sides, (count, 2)) / 2
    return np.concatenate([center - half, center + half], axis=1).astype(np.float32)
