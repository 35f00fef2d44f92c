"""How the pictures were prepared that weights were trained on."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from rmt_jax.models import RMTConfig


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """What happens to a picture before a model sees it. The fields are those of `rmt_jax.data.DataConfig`.

    Attributes:
        image_size: side of the square picture, in pixels.
        crop_ratio: the short side is resized to `floor(image_size / crop_ratio)`, then the centre is cropped.
        interpolation: "bilinear" or "bicubic", antialiased.
        mean: of each channel, RGB in 0..1, subtracted.
        std: of each channel, divided by.
    """

    image_size: int
    crop_ratio: float
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def from_json(cls, values: Any) -> "Preprocessing":
        """From a card, or from the data part of a configuration; other keys are left.

        Raises:
            ValueError: a value is missing or of the wrong type.
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"the preprocessing must be a group of keys, got {values!r}")
        missing = [field.name for field in dataclasses.fields(cls) if field.name not in values]
        if missing:
            raise ValueError(f"the preprocessing lacks {', '.join(missing)}")
        size, ratio, interpolation = values["image_size"], values["crop_ratio"], values["interpolation"]
        if type(size) is not int or not _is_number(ratio) or not isinstance(interpolation, str):
            raise ValueError(
                f"the preprocessing must have a size, a ratio and a name, got {size!r}, {ratio!r}, {interpolation!r}"
            )
        return cls(size, float(ratio), interpolation, _colours(values["mean"], "mean"), _colours(values["std"], "std"))

    def __str__(self) -> str:
        mean, std = (", ".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
        size = self.image_size
        return f"{size}x{size}, crop ratio {self.crop_ratio:g}, {self.interpolation}, mean ({mean}), std ({std})"


# Upstream's evaluation: timm's defaults for ImageNet, and those of its token-labelled models.
IMAGENET = Preprocessing(224, 0.875, "bicubic", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
TOKEN_LABEL_CROP_RATIO = 0.96


def upstream_preprocessing(task: str, config: RMTConfig) -> Preprocessing | None:
    """What upstream evaluates its classifiers with; of a detector's or segmentor's backbone nothing is known."""
    if task != "classification":
        return None
    return dataclasses.replace(IMAGENET, crop_ratio=TOKEN_LABEL_CROP_RATIO) if config.aux_head else IMAGENET


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _colours(values: Any, name: str) -> tuple[float, float, float]:
    if not isinstance(values, list | tuple) or len(values) != 3 or not all(map(_is_number, values)):
        raise ValueError(f"the preprocessing's {name} must be three numbers, got {values!r}")
    red, green, blue = values
    return float(red), float(green), float(blue)
