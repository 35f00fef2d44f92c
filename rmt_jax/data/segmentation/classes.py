"""Names and colours of classes where a data set has none."""

import numpy as np

# The real root of x**4 = x + 1: steps by its inverse powers, modulo 1, fill a cube evenly (Roberts' R3 sequence).
_ROOT = 1.2207440846057596


def numbered(count: int) -> tuple[str, ...]:
    """Names of classes that have none: "0", "1", ..."""
    return tuple(map(str, range(count)))


def palette(num_classes: int) -> np.ndarray:
    """A colour for every class, far from the others, RGB uint8 [num_classes 3].

    Points of a sequence that fills the cube of colours evenly; a colour does not depend on how many classes follow.
    """
    steps = np.arange(1, num_classes + 1)[:, None] / _ROOT ** np.arange(1, 4)
    return np.rint((0.5 + steps) % 1 * 255).astype(np.uint8)
