"""Names and colours of classes where a data set has none."""

import colorsys

import numpy as np

# Steps of the golden ratio never come close to a hue that is taken already.
_HUE_STEP = (5**0.5 - 1) / 2
_SATURATIONS, _BRIGHTNESSES = (0.85, 0.5, 0.65), (0.95, 0.6, 0.8, 0.4)


def numbered(count: int) -> tuple[str, ...]:
    """Names of classes that have none: "0", "1", ..."""
    return tuple(map(str, range(count)))


def palette(num_classes: int) -> np.ndarray:
    """A colour for every class, RGB uint8 [num_classes 3]; a colour does not depend on how many classes follow.

    Hues go round the circle in steps of the golden ratio, with three saturations and four brightnesses in turn.
    """
    colors = [
        colorsys.hsv_to_rgb(i * _HUE_STEP % 1, _SATURATIONS[i % 3], _BRIGHTNESSES[i % 4]) for i in range(num_classes)
    ]
    return np.rint(np.array(colors).reshape(-1, 3) * 255).astype(np.uint8)
