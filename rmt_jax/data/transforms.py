"""Picture transforms on PIL images, in the semantics of torchvision and timm. Randomness comes from the caller."""

import io
import math

import numpy as np
from PIL import Image, ImageOps

from rmt_jax.data.config import DataConfig

# What data sets are made of. Pillow knows more, and for some (EPS) it would start other programs.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")

# What Pillow raises for damaged files, depending on the format and on where the damage is.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, OverflowError, Image.DecompressionBombError)


class CorruptImageError(ValueError):
    """A record whose bytes are not a readable picture; the message names the record."""


def decode(data: bytes, record_id: str) -> Image.Image:
    """The picture in `data` (JPEG, PNG, WebP, ...) as 8-bit RGB.

    Grey and palette pictures are expanded, CMYK is converted, transparency is dropped, 16-bit grey keeps its high byte.
    An EXIF orientation is ignored, as by torchvision and timm: pixels stay as they are stored.

    Raises:
        CorruptImageError: the bytes are damaged, cut off, or not a picture.
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=_FORMATS)
        image.load()
    except _DAMAGE as error:
        raise CorruptImageError(
            f"cannot decode the picture of record {record_id!r} ({len(data)} bytes): {error}"
        ) from error
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):  # 16 bits: Pillow's own conversion clips at 255 and would leave it nearly white
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the direct way to RGB warns about the transparency that it drops
    return image.convert("RGB")


def random_crop_box(
    width: int,
    height: int,
    rng: np.random.Generator,
    scale: tuple[float, float],
    aspect: tuple[float, float],
) -> tuple[int, int, int, int]:
    """A random box (left, top, right, bottom) inside a picture, in pixels.

    Ten draws of area (uniform in `scale`, a share of the picture) and width / height (log-uniform in `aspect`); if none
    fits, the largest centred box within `aspect`. Source: torchvision `RandomResizedCrop.get_params`.
    """
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    w = min(width, max(1, round(height * aspect[1])))
    h = min(height, max(1, round(width / aspect[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def random_resized_crop(
    image: Image.Image,
    size: int,
    rng: np.random.Generator,
    scale: tuple[float, float] = (0.08, 1.0),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
    interpolation: str = "bicubic",
) -> Image.Image:
    """A random box of the picture (see `random_crop_box`), resized to `size` x `size`, antialiased.

    Crop and resize are one call, without a copy of the crop: at its border the filter sees the pixels beyond the box.
    """
    box = random_crop_box(image.width, image.height, rng, scale, aspect)
    return image.resize((size, size), _resampling(interpolation), box=box)


def resize_center_crop(image: Image.Image, size: int, crop_ratio: float, interpolation: str = "bicubic") -> Image.Image:
    """The evaluation transform: short side to `floor(size / crop_ratio)`, then the central `size` x `size`.

    224 at crop ratio 0.875 resizes to 256, at 0.96 to 233; 1.0 resizes to the crop itself. Source: timm's
    `transforms_imagenet_eval` with crop mode "center", that is torchvision's `Resize` and `CenterCrop`.
    """
    short = math.floor(size / crop_ratio)
    width, height = image.size
    if width <= height:
        width, height = short, int(short * height / width)
    else:
        width, height = int(short * width / height), short
    image = image.resize((width, height), _resampling(interpolation))
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def horizontal_flip(image: Image.Image, rng: np.random.Generator, probability: float = 0.5) -> Image.Image:
    """The picture or, with the given probability, its mirror image."""
    return ImageOps.mirror(image) if rng.random() < probability else image


def random_affine(
    image: Image.Image,
    rng: np.random.Generator,
    rotate: float = 0.0,
    translate: float = 0.0,
    scale: tuple[float, float] = (1.0, 1.0),
) -> Image.Image:
    """The picture turned, resized and shifted about its centre in one bilinear resample; what comes in is black.

    Args:
        image: a picture of any size; the size stays.
        rng: draws angle, size and the two shifts, all uniform.
        rotate: largest turn either way, in degrees.
        translate: largest shift, as a fraction of the width and of the height.
        scale: smallest and largest change of size.
    """
    angle = math.radians(rng.uniform(-rotate, rotate))
    factor = rng.uniform(*scale)
    shift_x, shift_y = rng.uniform(-translate, translate, size=2) * image.size
    # Pillow wants the way back: the input position of every output position.
    cos, sin = math.cos(angle) / factor, math.sin(angle) / factor
    x, y = image.width / 2, image.height / 2
    matrix = (
        *(cos, sin, x - cos * (x + shift_x) - sin * (y + shift_y)),
        *(-sin, cos, y + sin * (x + shift_x) - cos * (y + shift_y)),
    )
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


def train_transform(image: Image.Image, config: DataConfig, rng: np.random.Generator) -> np.ndarray:
    """A training picture, uint8 [image_size, image_size, 3]: crop and resize, flip, affine, as `config` has them."""
    augment = config.augment
    if augment.crop_scale is None:
        image = resize_center_crop(image, config.image_size, config.crop_ratio, config.interpolation)
    else:
        image = random_resized_crop(
            image, config.image_size, rng, augment.crop_scale, augment.crop_aspect, config.interpolation
        )
    if augment.flip:
        image = horizontal_flip(image, rng, augment.flip)
    if augment.rotate or augment.translate or augment.scale != (1.0, 1.0):
        # At the final size, so that a large picture is antialiased and an 8x8 one is enlarged as in evaluation.
        image = random_affine(image, rng, augment.rotate, augment.translate, augment.scale)
    return np.asarray(image)


def eval_transform(image: Image.Image, config: DataConfig) -> np.ndarray:
    """An evaluation picture, uint8 [image_size, image_size, 3]."""
    return np.asarray(resize_center_crop(image, config.image_size, config.crop_ratio, config.interpolation))


def _resampling(interpolation: str) -> Image.Resampling:
    return Image.Resampling[interpolation.upper()]
