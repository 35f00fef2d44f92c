"""Pictures with the objects that were found in them: boxes, names with scores, masks."""

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from rmt_jax.data.segmentation import palette
from rmt_jax.training.figures import save_figure, short_name

_OPACITY = 0.5  # of masks
_LEAST = 320  # pixels of the longer side of a drawn picture, so that its text can be read


class Found(NamedTuple):
    """Objects of a picture, one row each.

    Attributes:
        boxes: float [objects 4], x1, y1, x2, y2 in pixels.
        scores: float [objects].
        labels: int [objects].
        masks: bool [objects height width], or None.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | None

    def above(self, score: float) -> "Found":
        """Those with a higher score."""
        kept = self.scores > score
        masks = None if self.masks is None else self.masks[kept]
        return Found(self.boxes[kept], self.scores[kept], self.labels[kept], masks)


def draw_objects(image: np.ndarray, found: Found, class_names: Sequence[str], *, scores: bool = True) -> np.ndarray:
    """A picture, uint8 [height width 3], with boxes, names, scores in percent, and masks; small ones are enlarged."""
    colours = palette(len(class_names))
    if found.masks is not None:
        for mask, label in zip(found.masks, found.labels, strict=True):
            image = np.where(mask[..., None], (1 - _OPACITY) * image + _OPACITY * colours[label], image)
    times = max(1, -(-_LEAST // max(image.shape[:2])))
    picture = Image.fromarray(image.astype(np.uint8))
    picture = picture.resize((times * picture.width, times * picture.height), Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(picture)
    # The surest last, over the others.
    for row in np.argsort(found.scores, kind="stable"):
        colour, box = tuple(colours[found.labels[row]].tolist()), (times * found.boxes[row]).tolist()
        pen.rectangle(box, outline=colour, width=2)
        text = short_name(class_names[found.labels[row]]) + (f" {100 * found.scores[row]:.0f}" if scores else "")
        corner = max(0.0, box[0]), max(0.0, box[1] - 11)
        pen.rectangle(pen.textbbox(corner, text), fill=colour)
        pen.text(corner, text, fill="black" if sum(colour) > 384 else "white")
    return np.asarray(picture)


def plot_objects(
    pictures: Sequence[tuple[np.ndarray, Found, Found]], class_names: Sequence[str], path: pathlib.Path
) -> None:
    """Draws pictures in a row each: with what there is, and with what was found."""
    figure = Figure(figsize=(9, 3.6 * len(pictures)), dpi=100, layout="constrained")
    panels = figure.subplots(len(pictures), 2, squeeze=False)
    for row, (image, truth, found) in zip(panels, pictures, strict=True):
        for panel, objects in zip(row, (truth, found), strict=True):
            panel.imshow(draw_objects(image, objects, class_names, scores=objects is found))
            panel.axis("off")
    for panel, title in zip(panels[0], ("annotated", "found"), strict=True):
        panel.set_title(title, fontsize=10)
    save_figure(figure, path)
