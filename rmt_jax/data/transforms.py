"""Picture transforms on PIL images, in the semantics of torchvision and timm. Randomness comes from the caller."""

import math

import numpy as np
from PIL import Image, ImageOps

from rmt_jax.data.color import color_jitter, three_augment
from rmt_jax.data.config import INTERPOLATIONS, DataConfig
from rmt_jax.data.label_maps import flip_map, warp_map
from rmt_jax.data.randaugment import apply_operation, draw_operations, mean_color, rand_augment


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


def crop_and_resize(
    image: Image.Image, box: tuple[int, int, int, int], size: int, interpolation: str = "bicubic"
) -> Image.Image:
    """A box (left, top, right, bottom) of the picture, resized to `size` x `size`, antialiased.

    Crop and resize are one call, without a copy of the crop: at its border the filter sees the pixels beyond the box.
    """
    return image.resize((size, size), _resampling(interpolation), box=box)


def resize_center_crop(image: Image.Image, size: int, crop_ratio: float, interpolation: str = "bicubic") -> Image.Image:
    """The evaluation transform: short side to `floor(size / crop_ratio)`, then the central `size` x `size`.

    224 at crop ratio 0.875 resizes to 256, at 0.96 to 233; 1.0 resizes to the crop itself. Source: timm's
    `transforms_imagenet_eval` with crop mode "center", that is torchvision's `Resize` and `CenterCrop`.
    """
    resized, (left, top) = center_crop_box(*image.size, size, crop_ratio)
    return image.resize(resized, _resampling(interpolation)).crop((left, top, left + size, top + size))


def center_crop_box(width: int, height: int, size: int, crop_ratio: float) -> tuple[tuple[int, int], tuple[int, int]]:
    """What `resize_center_crop` does with a picture: (width, height) it is resized to, (left, top) of the crop."""
    short = math.floor(size / crop_ratio)
    if width <= height:
        width, height = short, int(short * height / width)
    else:
        width, height = int(short * width / height), short
    return (width, height), (round((width - size) / 2), round((height - size) / 2))


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
    """A training picture, uint8 [image_size, image_size, 3].

    Crop and resize, flip, RandAugment or ThreeAugment and colour jitter, affine: those that `config` has.
    """
    image = train_crop(image, config, rng)
    if config.augment.flip:
        image = horizontal_flip(image, rng, config.augment.flip)
    return np.asarray(train_augment(image, config, rng))


def train_crop(image: Image.Image, config: DataConfig, rng: np.random.Generator) -> Image.Image:
    """The first part of `train_transform`: a random crop, or the evaluation's, at the final size."""
    augment = config.augment
    if augment.crop_scale is None:
        return resize_center_crop(image, config.image_size, config.crop_ratio, config.interpolation)
    box = random_crop_box(image.width, image.height, rng, augment.crop_scale, augment.crop_aspect)
    return crop_and_resize(image, box, config.image_size, config.interpolation)


def train_augment(image: Image.Image, config: DataConfig, rng: np.random.Generator) -> Image.Image:
    """The last part of `train_transform`, after the flip: what changes colours and shapes at the final size."""
    augment = config.augment
    if augment.rand_augment.num_ops:
        image = rand_augment(image, rng, augment.rand_augment, mean_color(config.mean), config.interpolation)
    if augment.three_augment:
        image = three_augment(image, rng)
    if augment.color_jitter:
        image = color_jitter(image, rng, augment.color_jitter)
    if augment.rotate or augment.translate or augment.scale != (1.0, 1.0):
        # At the final size, so that a large picture is antialiased and an 8x8 one is enlarged as in evaluation.
        image = random_affine(image, rng, augment.rotate, augment.translate, augment.scale)
    return image


def token_label_transform(
    image: Image.Image, label_map: tuple[np.ndarray, np.ndarray], config: DataConfig, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """A training picture with the label map of what it shows, and the crop's place on that map.

    Another order than `train_transform`: flip, RandAugment on the whole picture, with its geometry on the map too, the
    crop last. Every interpolation is drawn, bilinear or bicubic. Source: "All Tokens Matter" (arXiv 2104.10858).

    Returns:
        {"image": uint8 [image_size, image_size, 3], "label_scores": float16 [5, 18, 18], "label_ids": int16 likewise,
        "crop_box": float32 [4], (top, left, height, width) as fractions of the picture}.
    """
    augment = config.augment
    scores, ids = label_map
    if rng.random() < augment.flip:
        image = ImageOps.mirror(image)
        scores, ids = flip_map(scores, ids)
    for operation in draw_operations(rng, augment.rand_augment, interpolation=None):
        image = apply_operation(image, operation, mean_color(config.mean))
        scores, ids = warp_map(scores, ids, operation, aspect=image.width / image.height)
    scale = augment.crop_scale or (1.0, 1.0)
    left, top, right, bottom = box = random_crop_box(image.width, image.height, rng, scale, augment.crop_aspect)
    place = (top / image.height, left / image.width, (bottom - top) / image.height, (right - left) / image.width)
    image = crop_and_resize(image, box, config.image_size, INTERPOLATIONS[rng.integers(len(INTERPOLATIONS))])
    return {
        "image": np.asarray(image),
        "label_scores": np.ascontiguousarray(scores),
        "label_ids": np.ascontiguousarray(ids),
        "crop_box": np.array(place, np.float32),
    }


def eval_transform(image: Image.Image, config: DataConfig) -> np.ndarray:
    """An evaluation picture, uint8 [image_size, image_size, 3]."""
    return np.asarray(resize_center_crop(image, config.image_size, config.crop_ratio, config.interpolation))


def _resampling(interpolation: str) -> Image.Resampling:
    return Image.Resampling[interpolation.upper()]
