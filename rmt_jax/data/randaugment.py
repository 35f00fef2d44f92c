"""RandAugment on PIL images: timm 0.9.10's `rand-m9-mstd0.5-inc1`, drawn and applied in two steps.

The drawn operations are values, so that whatever belongs to a picture (a label map) can follow its geometry.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from rmt_jax.data.config import INTERPOLATIONS, RandAugmentConfig

# The operations that move pixels and take an interpolation, each with its level at magnitude 10.
GEOMETRIC = {"Rotate": 30.0, "ShearX": 0.3, "ShearY": 0.3, "TranslateX": 0.45, "TranslateY": 0.45}

_ENHANCEMENTS = ("Color", "Contrast", "Brightness", "Sharpness")

# timm's increasing set, the more the higher the magnitude; there some names end in "Increasing" or "Rel".
OPERATIONS = ("AutoContrast", "Equalize", "Invert", "Posterize", "Solarize", "SolarizeAdd", *_ENHANCEMENTS, *GEOMETRIC)


@dataclass(frozen=True)
class Operation:
    """One drawn operation, independent of the size of what it is applied to.

    Attributes:
        name: one of `OPERATIONS`.
        level: what the operation takes. Rotate: degrees, counter-clockwise. ShearX, ShearY: shift in pixels for each
            pixel along the other axis. TranslateX, TranslateY: fraction of the width or the height. For both, what is
            added to the output position to get the input position: a positive level moves the content left or up.
            Posterize: bits kept, 0 to 4. Solarize: the threshold, 0 to 256. SolarizeAdd: what is added, 0 to 110.
            Color, Contrast, Brightness, Sharpness: the factor of enhancement, 0.1 to 1.9, where 1 changes nothing.
            AutoContrast, Equalize, Invert: 0, unused.
        interpolation: "bilinear" or "bicubic"; only the operations in `GEOMETRIC` read it.
    """

    name: str
    level: float
    interpolation: str


def mean_color(mean: tuple[float, float, float]) -> tuple[int, int, int]:
    """The colour, 0 to 255 a channel, of a mean in 0..1: what comes in at the border. Source: timm's `img_mean`."""
    red, green, blue = (min(255, round(255 * value)) for value in mean)
    return red, green, blue


def draw_operations(rng: np.random.Generator, config: RandAugmentConfig, interpolation: str | None) -> list[Operation]:
    """The operations for one picture, in the order to apply them; those that chance leaves out are not in the list.

    Args:
        rng: draws the operations, whether each is applied, its magnitude, its sign and its interpolation.
        config: how many operations are drawn, how likely each is applied, and how strongly.
        interpolation: "bilinear" or "bicubic" for all; None draws one of them for every operation.

    Source: timm `RandAugment` and `AugmentOp`, `_RAND_INCREASING_TRANSFORMS`.
    """
    operations = []
    for index in rng.integers(len(OPERATIONS), size=config.num_ops):
        if rng.random() >= config.probability:
            continue
        magnitude = max(0.0, min(rng.normal(config.magnitude, config.magnitude_std), 10.0))
        level = _draw_level(rng, OPERATIONS[index], magnitude)
        resample = interpolation or INTERPOLATIONS[rng.integers(len(INTERPOLATIONS))]
        operations.append(Operation(OPERATIONS[index], level, resample))
    return operations


def apply_operation(image: Image.Image, operation: Operation, fill: tuple[int, int, int]) -> Image.Image:
    """The RGB picture after one operation, of the same size; what comes in at the border has the colour `fill`.

    Raises:
        ValueError: there is no operation of that name.
    """
    name, level = operation.name, operation.level
    if name in GEOMETRIC:
        return _move(image, operation, fill)
    match name:
        case "AutoContrast":
            return ImageOps.autocontrast(image)
        case "Equalize":
            return ImageOps.equalize(image)
        case "Invert":
            return ImageOps.invert(image)
        case "Posterize":
            # timm means black by 0 bits, as Pillow once did; now Pillow refuses.
            return ImageOps.posterize(image, int(level)) if level else Image.new("RGB", image.size)
        case "Solarize":
            return ImageOps.solarize(image, int(level))
        case "SolarizeAdd":
            return image.point([value + int(level) if value < 128 else value for value in range(256)] * 3)
        case "Color":
            return ImageEnhance.Color(image).enhance(level)
        case "Contrast":
            return ImageEnhance.Contrast(image).enhance(level)
        case "Brightness":
            return ImageEnhance.Brightness(image).enhance(level)
        case "Sharpness":
            return ImageEnhance.Sharpness(image).enhance(level)
    raise ValueError(f"no RandAugment operation {name!r}: expected one of {', '.join(OPERATIONS)}")


def rand_augment(
    image: Image.Image,
    rng: np.random.Generator,
    config: RandAugmentConfig,
    fill: tuple[int, int, int],
    interpolation: str | None = "bicubic",
) -> Image.Image:
    """The RGB picture after the operations that `draw_operations` draws, each by `apply_operation`."""
    for operation in draw_operations(rng, config, interpolation):
        image = apply_operation(image, operation, fill)
    return image


def _draw_level(rng: np.random.Generator, name: str, magnitude: float) -> float:
    # timm also clamps some levels at the top; a magnitude of 10 at most does not get there.
    share = magnitude / 10
    if name in GEOMETRIC:
        return _either_sign(rng, share * GEOMETRIC[name])
    if name in _ENHANCEMENTS:
        return max(0.1, 1 + _either_sign(rng, share * 0.9))  # 1 - 0.9 is a little less than 0.1
    match name:
        case "Posterize":
            return 4.0 - int(share * 4)
        case "Solarize":
            return 256.0 - int(share * 256)
        case "SolarizeAdd":
            return float(int(share * 110))
    return 0.0


def _either_sign(rng: np.random.Generator, value: float) -> float:
    return -value if rng.random() < 0.5 else value


def _move(image: Image.Image, operation: Operation, fill: tuple[int, int, int]) -> Image.Image:
    level = operation.level
    resample = Image.Resampling[operation.interpolation.upper()]
    if operation.name == "Rotate":
        return image.rotate(level, resample, fillcolor=fill)
    matrix = {
        "ShearX": (1, level, 0, 0, 1, 0),
        "ShearY": (1, 0, 0, level, 1, 0),
        "TranslateX": (1, 0, level * image.width, 0, 1, 0),
        "TranslateY": (1, 0, 0, 0, 1, level * image.height),
    }[operation.name]
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample, fillcolor=fill)
