"""The `data.detection` part of a configuration: pictures with boxes and masks. Values only, checked when made."""

import dataclasses

# Padded sizes are multiples of it: the backbone's four maps and the neck's fifth then have whole sizes.
SIZE_DIVISOR = 32


@dataclasses.dataclass(frozen=True)
class DetectionDataConfig:
    """Pictures with boxes: how they are found, resized, cropped and put on canvases. The defaults are COCO's, 1x.

    Sides are given as (longest, shortest), in pixels: a picture is brought, in its own proportions, to the largest size
    that exceeds neither, and lies on a canvas as wide as the longest side if it is wider than high, or else as high.

    Attributes:
        annotations: with data.name="coco_json", the json of a split, below data.dir; {split} stands for its name.
        images: likewise the folder that the json's file names start from.
        masks: read the objects' masks, not only their boxes.
        scales: one of them is drawn for each training picture.
        crop_scales: a half of the training pictures is first resized to one of these, and cropped; () crops none.
        crop_sides: smallest and largest side of such a crop.
        flip: probability of a horizontal flip.
        flip_first: flip before anything is resized, as upstream's 3x recipes do, and not after it as 1x do; pixels
            differ in their rounding.
        canvas: sides of the training canvases, multiples of 32; equal sides make one canvas for all.
        eval_scale: sides in evaluation.
        eval_canvases: evaluate on the training canvases, and not on each picture's own multiples of 32.
        max_boxes: rows for the boxes of a picture. A data set with a picture that has more is refused.

    Raises:
        ValueError: a value is out of its range.
    """

    annotations: str = "annotations/instances_{split}.json"
    images: str = "{split}"
    masks: bool = False
    scales: tuple[tuple[int, int], ...] = ((1333, 800),)
    crop_scales: tuple[tuple[int, int], ...] = ()
    crop_sides: tuple[int, int] = (384, 600)
    flip: float = 0.5
    flip_first: bool = False
    canvas: tuple[int, int] = (1344, 800)
    eval_scale: tuple[int, int] = (1333, 800)
    eval_canvases: bool = False
    max_boxes: int = 100

    def __post_init__(self) -> None:
        if not self.scales:
            raise ValueError("data.detection.scales is empty: expected one or more, for example ((1333, 800),)")
        named = [("scales", scale) for scale in self.scales]
        named += [("crop_scales", scale) for scale in self.crop_scales]
        for name, sides in [*named, ("eval_scale", self.eval_scale), ("canvas", self.canvas)]:
            if len(sides) != 2 or not 0 < sides[1] <= sides[0]:
                raise ValueError(
                    f"data.detection.{name} has {sides}: expected (longest, shortest) side in pixels, for example "
                    "(1333, 800)"
                )
        if any(side % SIZE_DIVISOR for side in self.canvas):
            raise ValueError(
                f"data.detection.canvas={self.canvas}: expected multiples of {SIZE_DIVISOR}, for example (1344, 800)"
            )
        self._check_scales_fit()
        if not 0 < self.crop_sides[0] <= self.crop_sides[1]:
            raise ValueError(
                f"data.detection.crop_sides={self.crop_sides}: expected (smallest, largest) in pixels, such as "
                "(384, 600)"
            )
        if not 0 <= self.flip <= 1:
            raise ValueError(f"data.detection.flip={self.flip}: expected a probability between 0 and 1")
        if self.max_boxes < 1:
            raise ValueError(f"data.detection.max_boxes={self.max_boxes}: expected 1 or more, for example 100")
        for name in ("annotations", "images"):
            _check_pattern(name, getattr(self, name))

    def _check_scales_fit(self) -> None:
        """What is trained on or evaluated on the canvases must fit on them."""
        named = [("scales", scale) for scale in self.scales]
        if self.eval_canvases:
            named.append(("eval_scale", self.eval_scale))
        for name, sides in named:
            if sides[0] > self.canvas[0] or sides[1] > self.canvas[1]:
                needed = tuple(-(-side // SIZE_DIVISOR) * SIZE_DIVISOR for side in sides)
                raise ValueError(
                    f"data.detection.{name} has {sides}, which does not fit on canvas={self.canvas}: set canvas="
                    f"{needed}"
                )


def _check_pattern(name: str, pattern: str) -> None:
    try:
        pattern.format(split="train")
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(
            f"data.detection.{name}={pattern!r}: expected a path in which {{split}}, and nothing else in braces, "
            "stands for the split"
        ) from error
