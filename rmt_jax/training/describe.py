"""The recipe in words, for the summary table."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from rmt_jax.models import RMTConfig
from rmt_jax.ops import Heads, ffn_fits, fits, formulations, log_decay_rates, triton_fits
from rmt_jax.training.config import Config
from rmt_jax.training.kinds import kind_of
from rmt_jax.training.sharding import Placement, Tree

NAMED_ARRAYS = 3  # of the largest split ones


def describe_formulations(config: Config, platform: str) -> str:
    """What the operations of the model compute with on a platform, and where a kernel cannot be used."""
    parts = [formulations.describe(platform)]
    masked = config.task == "detection" and config.detection.canvas == "masked"
    for operation, has_kernel in (("retention", _retention_fits), ("ffn", _ffn_fits)):
        formulation = formulations.chosen(operation, platform)
        if formulation not in ("kernel", "triton"):
            continue
        if masked:
            parts.append(f"no {operation} kernel on a masked canvas")
            continue
        model = config.model.resolve(1)
        without = [
            f"{stage + 1} ({height}x{width}x{model.embed_dims[stage]})"
            for stage, (height, width) in enumerate(_map_sizes(config, len(model.embed_dims)))
            if not has_kernel(formulation, model, stage, (height, width), jnp.dtype(config.model.dtype))
        ]
        if without:
            parts.append(f"no {operation} kernel for the maps of stage {', '.join(without)}")
    return "; ".join(parts)


def _map_sizes(config: Config, stages: int) -> list[tuple[int, int]]:
    """(height, width) of the maps of a training picture."""
    height, width, _ = kind_of(config).training_shapes(config)["image"][0]
    return [(math.ceil(height / stride), math.ceil(width / stride)) for stride in (4 * 2**i for i in range(stages))]


def _retention_fits(formulation: str, model: RMTConfig, stage: int, size: tuple[int, int], dtype: DTypeLike) -> bool:
    rates = log_decay_rates(model.num_heads[stage], model.decay_start, model.decay_spans[stage])
    fit = triton_fits if formulation == "triton" else fits
    return fit(*size, model.embed_dims[stage], dtype, Heads(tuple(rates.tolist()), model.decomposed[stage]))


def _ffn_fits(_: str, model: RMTConfig, stage: int, size: tuple[int, int], dtype: DTypeLike) -> bool:
    dim = model.embed_dims[stage]
    return ffn_fits(*size, dim, int(dim * model.mlp_ratios[stage]), dtype)


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
