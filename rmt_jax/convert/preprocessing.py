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


@dataclasses.dataclass(frozen=True)
class DensePreprocessing:
    """What happens to a picture before a segmentor or a detector sees it: it is resized, and stays whole.

    Attributes:
        scale: longest and shortest side that a picture is brought to, in pixels, in its own proportions.
        mean: of each channel, RGB in 0..1, subtracted.
        std: of each channel, divided by.
    """

    scale: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "DensePreprocessing":
        """From a card.

        Raises:
            ValueError: a value is missing or of the wrong type.
        """
        scale = values.get("scale")
        if not isinstance(scale, list | tuple) or [type(side) for side in scale] != [int, int]:
            raise ValueError(f"the preprocessing's scale must be two whole numbers, got {scale!r}")
        longest, shortest = scale
        return cls((longest, shortest), _colours(values.get("mean"), "mean"), _colours(values.get("std"), "std"))

    def __str__(self) -> str:
        mean, std = (", ".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
        return f"whole, within {self.scale[0]}x{self.scale[1]}, mean ({mean}), std ({std})"


# Upstream's evaluation: timm's defaults for ImageNet, and those of its token-labelled models.
IMAGENET = Preprocessing(224, 0.875, "bicubic", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
TOKEN_LABEL_CROP_RATIO = 0.96
# And of its segmentors and detectors, for ADE20K and COCO.
DENSE_SCALES = {"segmentation": (2048, 512), "detection": (1333, 800)}


def read_preprocessing(values: Any) -> Preprocessing | DensePreprocessing:
    """From a card.

    Raises:
        ValueError: a value is missing or of the wrong type.
    """
    if isinstance(values, Mapping) and "scale" in values:
        return DensePreprocessing.from_json(values)
    return Preprocessing.from_json(values)


def run_preprocessing(data: Mapping[str, Any], task: str) -> Preprocessing | DensePreprocessing:
    """Of a run's evaluation, from the data part of its configuration.

    Raises:
        ValueError, KeyError, TypeError: a value is missing or of the wrong type.
    """
    if task not in DENSE_SCALES:
        return Preprocessing.from_json(data)
    scale = data[task]["eval_scale" if task == "detection" else "scale"]
    return DensePreprocessing.from_json({"scale": scale, "mean": data["mean"], "std": data["std"]})


def upstream_preprocessing(task: str, config: RMTConfig) -> Preprocessing | DensePreprocessing | None:
    """What upstream evaluates with; of a backbone alone nothing is known."""
    if task in DENSE_SCALES:
        return DensePreprocessing(DENSE_SCALES[task], IMAGENET.mean, IMAGENET.std)
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
