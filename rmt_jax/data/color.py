"""Random changes of colour and sharpness on PIL images: DeiT III's ThreeAugment and torchvision's colour jitter."""

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps


def three_augment(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The RGB picture made grey, solarised at 128, or blurred by a Gaussian of radius 0.1 to 2 pixels, equally likely.

    Source: DeiT III (arXiv:2204.07118), `augment.py` of its code.
    """
    choice = rng.integers(3)
    if choice == 0:
        return ImageOps.grayscale(image).convert("RGB")
    if choice == 1:
        return ImageOps.solarize(image, 128)
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 2.0)))


def color_jitter(image: Image.Image, rng: np.random.Generator, strength: float) -> Image.Image:
    """The RGB picture with brightness, contrast and saturation changed, one after the other in random order.

    Each by its own factor, uniform between `1 - strength` (at least 0) and `1 + strength`. Source: torchvision
    `ColorJitter(strength, strength, strength)`, no hue.
    """
    enhancements = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for index in rng.permutation(len(enhancements)):
        factor = rng.uniform(max(0.0, 1 - strength), 1 + strength)
        image = enhancements[index](image).enhance(factor)
    return image
