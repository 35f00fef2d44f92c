"""The recipe in words, for the summary table."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from rmt_jax.models import RMTConfig
from rmt_jax.ops import Heads, ffn_fits, fits, formulations, log_decay_rates
from rmt_jax.training.config import Config
from rmt_jax.training.sharding import Placement, Tree

NAMED_ARRAYS = 3  # of the largest split ones


def describe_augmentation(config: Config) -> str:
    """What happens to training pictures, on the host and on the device."""
    data, augment, mix = config.data, config.data.augment, config.mix
    policy = augment.rand_augment
    parts = {
        f"crops of {_range(augment.crop_scale)} of the area": augment.crop_scale,
        f"flip {augment.flip:g}": augment.flip,
        f"RandAugment {policy.num_ops} x {policy.magnitude:g}": policy.num_ops,
        "ThreeAugment": augment.three_augment,
        f"colour jitter {augment.color_jitter:g}": augment.color_jitter,
        "turns, shifts, sizes": augment.rotate or augment.translate or augment.scale != (1.0, 1.0),
        f"{data.repeats} repeats over {data.repeat_replicas} replicas": data.repeats > 1,
        f"erasing {config.erasing:g}": config.erasing,
        f"mixup {mix.mixup:g}": mix.mixup,
        f"CutMix {mix.cutmix:g}": mix.cutmix,
        "mix-token": mix.mix_token,
        f"in groups of {mix.group}": mix.mixes_pictures or mix.mix_token,
    }
    return ", ".join(text for text, present in parts.items() if present) or "none"


def describe_loss(config: Config) -> str:
    """What is minimised."""
    distill = config.distill
    parts = {
        {"cross_entropy": "cross entropy", "bce": "binary cross entropy"}[config.loss]: True,
        f"labels smoothed by {config.label_smoothing:g}": config.label_smoothing,
        f"token labels of {config.data.token_labels.file}": config.data.token_labels.file,
        f"{distill.kind} distillation from {distill.teacher}, weight {distill.weight:g}": distill.teacher,
    }
    return ", ".join(text for text, present in parts.items() if present)


def describe_formulations(config: Config, platform: str) -> str:
    """What the operations of the model compute with on a platform, and where a kernel cannot be used."""
    parts = [formulations.describe(platform)]
    for operation, has_kernel in (("retention", _retention_fits), ("ffn", _ffn_fits)):
        if formulations.chosen(operation, platform) == "kernel":
            model = config.model.resolve(1)
            sides = [math.ceil(config.data.image_size / (4 * 2**stage)) for stage in range(len(model.embed_dims))]
            without = [
                f"{stage + 1} ({side}x{side}x{model.embed_dims[stage]})"
                for stage, side in enumerate(sides)
                if not has_kernel(model, stage, side, jnp.dtype(config.model.dtype))
            ]
            if without:
                parts.append(f"no {operation} kernel for the maps of stage {', '.join(without)}")
    return "; ".join(parts)


def _retention_fits(model: RMTConfig, stage: int, side: int, dtype: DTypeLike) -> bool:
    rates = log_decay_rates(model.num_heads[stage], model.decay_start, model.decay_spans[stage])
    return fits(side, side, model.embed_dims[stage], dtype, Heads(tuple(rates.tolist()), model.decomposed[stage]))


def _ffn_fits(model: RMTConfig, stage: int, side: int, dtype: DTypeLike) -> bool:
    dim = model.embed_dims[stage]
    return ffn_fits(side, side, dim, int(dim * model.mlp_ratios[stage]), dtype)


def describe_placement(placement: Placement, abstract_state: Tree) -> dict[str, str]:
    """Rows about which arrays of the state are split over the devices, and which are whole on each of them."""
    leaves = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in _leaves(abstract_state)}
    by_size = sorted(leaves, key=lambda name: -_bytes(leaves[name]))
    split = [name for name in by_size if not leaves[name].sharding.is_fully_replicated]
    whole = [name for name in by_size if leaves[name].sharding.is_fully_replicated]
    sizes = {part: sum(_bytes(leaves[name]) for name in names) for part, names in (("split", split), ("whole", whole))}
    parts = placement.mesh.shape["fsdp"]
    each = sizes["split"] / parts + sizes["whole"]
    rows = {"state": f"{sum(sizes.values()) / 2**20:,.0f} MiB, {each / 2**20:,.0f} MiB of it on each device"}
    if parts == 1:
        return rows | {"sharding": "the batch over all devices, the state whole on each"}
    shown = [name for name in split if name.startswith("params/")][:NAMED_ARRAYS]
    rows["split"] = f"{len(split)} arrays in {parts} parts, the largest: " + ", ".join(
        f"{name.removeprefix('params/')} {_shape(leaves[name])}" for name in shown
    )
    rows["whole"] = f"{len(whole)} arrays, {sizes['whole'] / 2**20:,.1f} MiB, the largest: {whole[0]}"
    if undivided := placement.undivided(abstract_state):
        rows["not split"] = f"{len(undivided)} arrays that {parts} does not divide, such as {undivided[0]}"
    return rows


def _leaves(tree: Tree) -> list[tuple[Any, Any]]:
    return jax.tree.leaves_with_path(tree)


def _bytes(leaf: Any) -> int:
    return leaf.size * np.dtype(leaf.dtype).itemsize


def _shape(leaf: Any) -> str:
    """[3 3 448 640/8]: what each device has of an axis."""
    axes = [*leaf.sharding.spec] + [None] * (leaf.ndim - len(leaf.sharding.spec))
    parts = leaf.sharding.mesh.shape
    sizes = [f"{size}/{parts[axis]}" if axis else str(size) for size, axis in zip(leaf.shape, axes, strict=True)]
    return f"[{' '.join(sizes)}]"


def _range(pair: tuple[float, float] | None) -> str:
    return "" if pair is None else f"{pair[0]:g}..{pair[1]:g}"
