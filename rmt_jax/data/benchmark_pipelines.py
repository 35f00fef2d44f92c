"""A batch in one thread, with a look at the clock after every stage: as here, and as torchvision and timm do it."""

import dataclasses
import io
import math
import time
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps

from rmt_jax.data.batches import Batch, Element
from rmt_jax.data.config import INTERPOLATIONS, DataConfig
from rmt_jax.data.decode import decode
from rmt_jax.data.interface import Example, ImageSource
from rmt_jax.data.label_maps import LabelMaps, flip_map, warp_map
from rmt_jax.data.order import TrainingOrder
from rmt_jax.data.randaugment import apply_operation, draw_operations, mean_color
from rmt_jax.data.transforms import (
    crop_and_resize,
    horizontal_flip,
    random_crop_box,
    resize_center_crop,
    train_augment,
    train_crop,
)

_Box = tuple[int, int, int, int]


class Laps:
    """Seconds by stage: a call books the time since the last one.

    Attributes:
        seconds: by stage, in order of appearance.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def __call__(self, stage: str) -> None:
        """Book the time since the last call, or since this was made, on a stage."""
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """Both ways to a batch, with the same random draws.

    Attributes:
        source: the pictures.
        order: which of them a batch has.
        config: the recipe.
        seed: of the draws.
        batch_size: pictures in a batch.
        maps: label maps, where `config` names them.
        erasing: probability of random erasing; only the baseline does it here.
    """

    source: ImageSource
    order: TrainingOrder
    config: DataConfig
    seed: int
    batch_size: int
    maps: LabelMaps | None
    erasing: float

    def ours(self, step: int, lap: Laps) -> Batch:
        """What `TrainLoader` yields at a step."""
        elements = []
        for position in range(self.batch_size):
            example, rng = self._draw(step, position)
            lap("read")
            image = decode(example.image, example.id)
            lap("decode")
            element: Element = {"label": np.int32(example.label)}
            if self.maps is None:
                image = train_crop(image, self.config, rng)
                lap("crop, resize")
                image = self._flip(image, rng, lap)
                image = train_augment(image, self.config, rng)
                lap("augment")
            else:
                image, box, *label_map = self._token_label(image, example, self.maps, rng, lap)
                element["label_scores"], element["label_ids"] = label_map
                element["crop_box"] = _place(box, image)
                image = crop_and_resize(image, box, self.config.image_size, _either(rng))
                lap("crop, resize")
            elements.append({"image": np.asarray(image), **element})
            lap("to array")
        return _collate(elements, lap)

    def baseline(self, step: int, lap: Laps) -> Batch:
        """The same recipe, picture by picture as torchvision and timm do it: float32, [batch channels height width].

        Pillow decodes, the crop is copied and then resized, and the CPU normalises and erases. With NumPy in place of
        torch. Source: timm `create_transform` and `RandomErasing`, torchvision `RandomResizedCrop` and `ToTensor`.
        """
        elements = []
        mean, std = (np.array(values, np.float32)[:, None, None] for values in (self.config.mean, self.config.std))
        for position in range(self.batch_size):
            example, rng = self._draw(step, position)
            lap("read")
            image = Image.open(io.BytesIO(example.image)).convert("RGB")
            lap("decode")
            element: Element = {"label": np.int32(example.label)}
            if self.maps is None:
                image = self._crop(image, rng)
                lap("crop, resize")
                image = self._flip(image, rng, lap)
                image = train_augment(image, self.config, rng)
                lap("augment")
            else:
                image, box, *label_map = self._token_label(image, example, self.maps, rng, lap)
                element["label_scores"], element["label_ids"] = label_map
                element["crop_box"] = _place(box, image)
                image = _crop_then_resize(image, box, self.config.image_size, _either(rng))
                lap("crop, resize")
            pixels = np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1)).astype(np.float32)
            pixels /= 255
            lap("to array")
            pixels -= mean
            pixels /= std
            lap("normalise")
            if self.erasing:
                _erase(pixels, rng, self.erasing)
                lap("erase")
            elements.append({"image": pixels, **element})
        return _collate(elements, lap)

    def read(self, step: int) -> int:
        """Read the batch once; returns its bytes."""
        return sum(len(self._draw(step, position)[0].image) for position in range(self.batch_size))

    def _draw(self, step: int, position: int) -> tuple[Example, np.random.Generator]:
        rng = np.random.default_rng((self.seed, step * self.batch_size + position))
        return self.source[self.order.picture(step, position)], rng

    def _flip(self, image: Image.Image, rng: np.random.Generator, lap: Laps) -> Image.Image:
        if self.config.augment.flip:
            image = horizontal_flip(image, rng, self.config.augment.flip)
            lap("flip")
        return image

    def _crop(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        config, augment = self.config, self.config.augment
        if augment.crop_scale is None:
            return resize_center_crop(image, config.image_size, config.crop_ratio, config.interpolation)
        box = random_crop_box(image.width, image.height, rng, augment.crop_scale, augment.crop_aspect)
        return _crop_then_resize(image, box, config.image_size, config.interpolation)

    def _token_label(
        self, image: Image.Image, example: Example, maps: LabelMaps, rng: np.random.Generator, lap: Laps
    ) -> tuple[Image.Image, _Box, np.ndarray, np.ndarray]:
        """The whole picture and its label map, augmented, and the box to crop: `token_label_transform` but for that."""
        augment = self.config.augment
        scores, ids = maps[example.id]
        lap("label map")
        if rng.random() < augment.flip:
            image = ImageOps.mirror(image)
            scores, ids = flip_map(scores, ids)
        lap("flip")
        for operation in draw_operations(rng, augment.rand_augment, interpolation=None):
            image = apply_operation(image, operation, mean_color(self.config.mean))
            scores, ids = warp_map(scores, ids, operation, aspect=image.width / image.height)
        lap("augment")
        box = random_crop_box(image.width, image.height, rng, augment.crop_scale or (1.0, 1.0), augment.crop_aspect)
        return image, box, scores, ids


def _crop_then_resize(image: Image.Image, box: _Box, size: int, interpolation: str) -> Image.Image:
    return image.crop(box).resize((size, size), Image.Resampling[interpolation.upper()])


def _either(rng: np.random.Generator) -> str:
    return INTERPOLATIONS[rng.integers(len(INTERPOLATIONS))]


def _place(box: _Box, image: Image.Image) -> np.ndarray:
    left, top, right, bottom = box
    place = top / image.height, left / image.width, (bottom - top) / image.height, (right - left) / image.width
    return np.array(place, np.float32)


def _erase(pixels: np.ndarray, rng: np.random.Generator, probability: float) -> None:
    """Noise in a box of 2 % to a third of the area, in place."""
    if rng.random() >= probability:
        return
    _, height, width = pixels.shape
    for _ in range(10):
        area = height * width * rng.uniform(0.02, 1 / 3)
        aspect = math.exp(rng.uniform(math.log(0.3), math.log(1 / 0.3)))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if h < height and w < width:
            top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
            pixels[:, top : top + h, left : left + w] = rng.standard_normal((3, h, w), np.float32)
            return


def _collate(elements: Sequence[Element], lap: Laps) -> Batch:
    batch = {key: np.stack([element[key] for element in elements]) for key in elements[0]}
    lap("batch")
    return batch
