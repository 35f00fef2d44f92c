"""Forward pass and single blocks compiled for TPU chips that need not be here: the bytes and operations of a picture.

Unrolled programs only: the compiler counts the body of a loop once, and a picture's bytes must not hide in one.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from rmt_jax.models import Backbone, Block, abstract_model
from rmt_jax.models.block_loop import PerDevice, run_blocks
from rmt_jax.training.ahead import NUM_CLASSES
from rmt_jax.training.config import Config
from rmt_jax.training.cost import count_flops
from rmt_jax.training.program import place_model, training_task
from rmt_jax.training.sharding import MeshConfig, batch_sharding, formulations_for, make_mesh, replicated


@dataclasses.dataclass(frozen=True)
class Cost:
    """The compiler's figures for a program.

    Attributes:
        name: "forward pass", or a stage with its map, a block of which it is.
        backward: whether the backward pass is in it.
        count: how often the whole model has it; 0 for the whole model itself.
        flops: of matrix products and convolutions, a picture.
        bytes: between memory and chip, a picture.
        floor: the same if arguments were read and results written once.
        temporaries: of a chip.
    """

    name: str
    backward: bool
    count: int
    flops: float
    bytes: float
    floor: float
    temporaries: float


def forward_cost(config: Config, devices: Sequence[jax.Device]) -> Cost:
    """Logits in evaluation mode; the configuration's batch is that of all devices."""
    task, mesh = training_task(config, NUM_CLASSES), make_mesh(MeshConfig(), devices)
    model = abstract_model(task.init_model)
    model.eval()
    place_model(model, mesh, config.mesh.min_split, config.model.dtype)
    size = config.data.image_size
    images = jax.ShapeDtypeStruct((config.batch_size, size, size, 3), jnp.dtype(config.model.dtype))
    return _cost("forward pass", 0, _as_function(model), _weights(model), images, mesh)


def block_costs(config: Config, devices: Sequence[jax.Device]) -> Iterator[Cost]:
    """A block of each stage in training mode without drop path: forward, then forward and backward."""
    task, mesh = training_task(config, NUM_CLASSES), make_mesh(MeshConfig(), devices)
    model = abstract_model(task.init_model)
    place_model(model, mesh, config.mesh.min_split, config.model.dtype)
    backbone = next(module for _, module in nnx.iter_modules(model) if isinstance(module, Backbone))
    for index, (stage, info) in enumerate(zip(backbone.layers, backbone.feature_info, strict=True)):
        block, side = stage.blocks[0], math.ceil(config.data.image_size / info.stride)
        shape = (config.batch_size, side, side, info.channels)
        x = jax.ShapeDtypeStruct(shape, jnp.dtype(config.model.dtype))
        name = f"stage {index + 1}, {side}x{side}x{info.channels}"
        function, weights = _of_block(block, stage.per_device), _weights(block)
        for backward in (False, True):
            yield _cost(name, len(stage.blocks), function, weights, x, mesh, backward=backward)


def _forward_and_backward(function: Callable[..., Any], weights: Any, x: jax.Array) -> Any:
    """y and the gradients with y itself as what comes back: an argument of the backward pass of y's size."""
    y, pull = jax.vjp(function, weights, x)
    return y, pull(y)


def _as_function(module: nnx.Module) -> Callable[..., Any]:
    graph, _ = nnx.split(module)
    return lambda weights, x: nnx.merge(graph, weights)(x)


def _of_block(block: Block, per_device: PerDevice | None) -> Callable[..., Any]:
    graph, _ = nnx.split(block)
    return lambda weights, x: run_blocks([nnx.merge(graph, weights)], x, None, per_device=per_device)


def _weights(module: nnx.Module) -> Any:
    return nnx.to_pure_dict(nnx.state(module))


def _cost(
    name: str,
    count: int,
    function: Callable[..., Any],
    weights: Any,
    x: jax.ShapeDtypeStruct,
    mesh: Mesh,
    *,
    backward: bool = False,
) -> Cost:
    whole, split = replicated(mesh), batch_sharding(mesh)
    arguments = (
        jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), weights),
        jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split),
    )
    with formulations_for(mesh):
        traced = jax.jit(functools.partial(_forward_and_backward, function) if backward else function).trace(*arguments)
        compiled = traced.lower().compile()
    memory, accessed = compiled.memory_analysis(), compiled.cost_analysis()["bytes accessed"]
    each = x.shape[0] / mesh.size
    return Cost(
        name=name,
        backward=backward,
        count=count,
        flops=count_flops(traced.jaxpr.jaxpr) / x.shape[0],
        bytes=accessed / each,
        floor=(memory.argument_size_in_bytes + memory.output_size_in_bytes) / each,
        temporaries=float(memory.temp_size_in_bytes),
    )
