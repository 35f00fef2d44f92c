"""A sheet of one photograph under a recipe's augmentation, on the host and on the device."""

import copy
import dataclasses
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image, ImageOps

from rmt_jax.data import DataConfig, eval_transform
from rmt_jax.data.label_maps import GRID, TOP
from rmt_jax.data.randaugment import OPERATIONS, Operation, apply_operation, draw_operations, mean_color
from rmt_jax.data.transforms import token_label_transform, train_transform
from rmt_jax.ops import box_share, swap_boxes
from rmt_jax.tasks import Classification
from rmt_jax.training.config import Config
from rmt_jax.training.figures import ORANGE, save_figure

COLUMNS = 6
TRAINING_ROWS = 3

_TOKEN_PIXELS = 32  # side of the square of pixels that mix-token exchanges as one token

# In inches.
_SIDE, _GAP, _MARGIN, _LINE, _HEADING, _TITLE = 1.7, 0.12, 0.25, 0.19, 0.42, 0.35


class Box(NamedTuple):
    """A place on a picture, in its pixels."""

    left: float
    top: float
    width: float
    height: float


@dataclasses.dataclass(frozen=True)
class Panel:
    """A picture, lines of text below, and a box drawn on it."""

    picture: np.ndarray
    caption: str = ""
    box: Box | None = None


@dataclasses.dataclass(frozen=True)
class Section:
    """Panels under a heading."""

    heading: str
    panels: Sequence[Panel]


def sample_photographs() -> tuple[Image.Image, Image.Image]:
    """Scikit-learn's two: a Chinese palace, a flower; 640x427 pixels."""
    # Imported here: it takes a second, and only this needs it.
    from sklearn.datasets import load_sample_images

    china, flower = load_sample_images().images
    return Image.fromarray(china), Image.fromarray(flower)


def draw_augment_sheet(
    config: Config, photograph: Image.Image, partner: Image.Image, path: pathlib.Path, *, seed: int, title: str
) -> None:
    """Draw the sheet and write it, whole or not at all.

    Args:
        config: the recipe.
        photograph: the picture to show, RGB of any size.
        partner: what it is mixed with.
        path: where to write, see `save_figure`.
        seed: of all draws, 0 <= seed < 2**32.
        title: of the sheet.
    """
    _draw(sections(config, photograph, partner, seed), path, title)


def sections(config: Config, photograph: Image.Image, partner: Image.Image, seed: int) -> list[Section]:
    """What `draw_augment_sheet` draws."""
    data, rng = config.data, np.random.default_rng(seed)
    evaluated = eval_transform(photograph, data)
    first = [
        Panel(np.asarray(photograph), f"{photograph.width}x{photograph.height}"),
        Panel(evaluated, f"{data.image_size}x{data.image_size}, crop ratio {data.crop_ratio:g}"),
    ]
    found = [Section("The photograph, and as evaluation sees it", first)]
    if data.token_labels.file is None:
        views = [Panel(train_transform(photograph, data, rng)) for _ in range(TRAINING_ROWS * COLUMNS)]
        found.append(Section("Training pictures, as they leave the host", views))
    else:
        found += _token_sections(photograph, data, rng)
    found.append(_device_section(config, photograph, partner, rng, seed))
    if data.augment.rand_augment.num_ops:
        found.append(_operations_section(evaluated, data))
    return found


def _token_sections(photograph: Image.Image, data: DataConfig, rng: np.random.Generator) -> list[Section]:
    wholes, crops = [], []
    for _ in range(COLUMNS):
        whole = _augmented(photograph, data, copy.deepcopy(rng))
        view = token_label_transform(photograph, _no_map(), data, rng)
        top, left, height, width = (float(value) for value in view["crop_box"])
        box = Box(left * whole.width, top * whole.height, width * whole.width, height * whole.height)
        wholes.append(Panel(np.asarray(whole), box=box))
        crops.append(Panel(view["image"], f"{100 * width * height:.0f} % of the picture"))
    return [
        Section("The whole photograph, flipped and augmented, and the crop: the label map follows both", wholes),
        Section("Training pictures, as they leave the host", crops),
    ]


def _augmented(photograph: Image.Image, data: DataConfig, rng: np.random.Generator) -> Image.Image:
    """What `token_label_transform` crops, with the same draws."""
    if rng.random() < data.augment.flip:
        photograph = ImageOps.mirror(photograph)
    for operation in draw_operations(rng, data.augment.rand_augment, interpolation=None):
        photograph = apply_operation(photograph, operation, mean_color(data.mean))
    return photograph


def _no_map() -> tuple[np.ndarray, np.ndarray]:
    return np.zeros((TOP, GRID, GRID), np.float16), np.zeros((TOP, GRID, GRID), np.int16)


def _host_picture(photograph: Image.Image, data: DataConfig, rng: np.random.Generator) -> np.ndarray:
    if data.token_labels.file is None:
        return train_transform(photograph, data, rng)
    return token_label_transform(photograph, _no_map(), data, rng)["image"]


def _device_section(
    config: Config, photograph: Image.Image, partner: Image.Image, rng: np.random.Generator, seed: int
) -> Section:
    """`Classification.prepare` of pairs of the two photographs, each pair a group of its own."""
    data = config.data
    pictures = [_host_picture(picture, data, rng) for _ in range(COLUMNS) for picture in (photograph, partner)]
    # Two classes and no smoothing: the target is then the photograph's share.
    task = Classification(
        model=config.model.resolve(num_classes=2),
        dtype=config.model.dtype,
        mean=data.mean,
        std=data.std,
        erasing=config.erasing,
        mix=dataclasses.replace(config.mix, group=2),
    )
    batch = {"image": jnp.asarray(np.stack(pictures)), "label": jnp.arange(len(pictures)) % 2}
    prepared = jax.jit(task.prepare)(batch, jax.random.key(seed))
    images, shares = prepared["image"], np.asarray(prepared["target"])[::2, 0]
    if config.mix.mix_token:
        images = swap_boxes(images, prepared["boxes"] * _TOKEN_PIXELS)
        side = data.image_size // _TOKEN_PIXELS
        shares = 1 - np.asarray(box_share(prepared["boxes"], side, side))
    shown = (np.asarray(images)[::2] * np.array(data.std) + np.array(data.mean)).clip(0, 1)
    mixes = config.mix.mixes_pictures or config.mix.mix_token
    captions = [f"target {100 * share:.0f} % itself" if mixes else "" for share in shares]
    changes = [
        f"erased with probability {config.erasing:g}" if config.erasing else "",
        _mixing(config) if mixes else "",
    ]
    how = ", ".join(filter(None, changes)) or "neither erased nor mixed"
    panels = [Panel(picture, caption) for picture, caption in zip(shown, captions, strict=True)]
    return Section(f"As the model sees them, normalisation undone: {how}", panels)


def _mixing(config: Config) -> str:
    if config.mix.mix_token:
        return "tokens of a partner (shown as pixels, exchanged after the stem)"
    kinds = [name for name, alpha in (("mixup", config.mix.mixup), ("CutMix", config.mix.cutmix)) if alpha]
    return f"{' or '.join(kinds)} with probability {config.mix.probability:g}"


def _operations_section(evaluated: np.ndarray, data: DataConfig) -> Section:
    recipe = data.augment.rand_augment
    # Each is drawn once in 15; of so many draws all come.
    every = dataclasses.replace(recipe, num_ops=500, magnitude_std=0.0, probability=1.0)
    drawn = {op.name: op for op in draw_operations(np.random.default_rng(0), every, data.interpolation)}
    image, fill = Image.fromarray(evaluated), mean_color(data.mean)
    panels = [
        Panel(np.asarray(apply_operation(image, drawn[name], fill)), _caption(drawn[name])) for name in OPERATIONS
    ]
    each = f"{recipe.num_ops} are drawn for a picture, each applied with probability {recipe.probability:g}"
    return Section(f"RandAugment's operations at magnitude {recipe.magnitude:g}: {each}", panels)


def _caption(operation: Operation) -> str:
    level = {
        "Rotate": f" {operation.level:+.0f}°",
        "TranslateX": f" {100 * operation.level:+.0f} %",
        "TranslateY": f" {100 * operation.level:+.0f} %",
        "Posterize": f" to {operation.level:.0f} bit" + "s" * (operation.level > 1),
        "Solarize": f" from {operation.level:.0f}",
        "SolarizeAdd": f" {operation.level:+.0f}",
    }
    plain = f" {operation.level:.2f}" if operation.level else ""
    return operation.name + level.get(operation.name, plain)


def _draw(found: Sequence[Section], path: pathlib.Path, title: str) -> None:
    rows = [[section.panels[i : i + COLUMNS] for i in range(0, len(section.panels), COLUMNS)] for section in found]
    heights = [[_row_height(row) for row in section] for section in rows]
    width = 2 * _MARGIN + COLUMNS * _SIDE + (COLUMNS - 1) * _GAP
    height = 2 * _MARGIN + _TITLE + sum(_HEADING + sum(section) for section in heights)
    figure = Figure(figsize=(width, height), dpi=120)
    y = height - _MARGIN - _TITLE
    figure.text(_MARGIN / width, (y + 0.12) / height, title, fontsize=14, weight="bold", parse_math=False)
    for section, panels, row_heights in zip(found, rows, heights, strict=True):
        figure.text(_MARGIN / width, (y - 0.26) / height, section.heading, fontsize=10.5, parse_math=False)
        y -= _HEADING
        for row, row_height in zip(panels, row_heights, strict=True):
            x = _MARGIN
            for panel in row:
                wide, high = _size(panel, len(row))
                axes = figure.add_axes((x / width, (y - high) / height, wide / width, high / height))
                _draw_panel(axes, panel)
                x += wide + _GAP
            y -= row_height
    save_figure(figure, path)


def _size(panel: Panel, count: int) -> tuple[float, float]:
    """Width and height in inches: as high as all, unless that is too wide for as many as there are."""
    high, wide, *_ = panel.picture.shape
    limit = (COLUMNS * _SIDE + (COLUMNS - count) * _GAP) / count
    scale = min(_SIDE / high, limit / wide)
    return wide * scale, high * scale


def _row_height(row: Sequence[Panel]) -> float:
    lines = max(panel.caption != "" for panel in row)
    return max(_size(panel, len(row))[1] for panel in row) + _GAP + lines * _LINE


def _draw_panel(axes: Axes, panel: Panel) -> None:
    height, width, *_ = panel.picture.shape
    axes.imshow(panel.picture, interpolation="nearest" if max(height, width) <= 64 else "antialiased")
    axes.axis("off")
    axes.text(0.5, -0.03, panel.caption, fontsize=8.5, ha="center", va="top", transform=axes.transAxes)
    if panel.box is not None:
        left, top, *sides = panel.box
        axes.add_patch(Rectangle((left, top), *sides, fill=False, edgecolor=ORANGE, linewidth=2))
