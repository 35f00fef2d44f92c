"""A picture with the classes that a classifier finds likeliest beside it."""

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from rmt_jax.training.figures import short_name

_HEIGHT, _LEAST, _MOST, _BARS = 3.2, 1.6, 6.4, 4.0  # inches: of all, of the picture, of the bars
_ROW = 0.3  # inches that a class needs at least
_DPI = 100
SHOWN = int(2 * _MOST * _DPI), int(2 * _HEIGHT * _DPI)  # pixels; larger pictures are drawn no better
_NAME = 28  # characters of a class's name
_BLUE, _LIGHT = "#0072B2", "#BBD7EA"


def draw_classes(image: Image.Image, class_names: Sequence[str], probabilities: np.ndarray) -> bytes:
    """A PNG: the picture, and bars for the classes from the likeliest down.

    Args:
        image: RGB; no more than `SHOWN` is needed.
        class_names: to show, the likeliest first.
        probabilities: of these, float [classes], 0 to 1.
    """
    width = float(np.clip(_HEIGHT * image.width / image.height, _LEAST, _MOST))
    figure = Figure(figsize=(width + _BARS, max(_HEIGHT, _ROW * len(class_names))), dpi=_DPI, layout="constrained")
    picture, bars = figure.subplots(1, 2, width_ratios=(width, _BARS))
    picture.imshow(image, interpolation="nearest" if max(image.size) <= 64 else "antialiased")
    picture.axis("off")
    places = np.arange(len(class_names))
    bars.barh(places, probabilities, height=0.42, color=[_BLUE, *[_LIGHT] * (len(class_names) - 1)])
    for place, name, probability in zip(places, class_names, probabilities, strict=True):
        text = f"{short_name(name, _NAME)}  {100 * probability:.1f} %"
        bars.text(0.01, place - 0.3, text, fontsize=9, va="bottom", parse_math=False)
    bars.set(xlim=(0, 1), ylim=(max(len(class_names), 3) - 0.5, -0.9), xticks=[], yticks=[])
    bars.spines[["top", "right", "bottom"]].set_visible(False)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()
