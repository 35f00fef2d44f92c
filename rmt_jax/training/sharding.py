"""The mesh, where each array of the state lives on it, and how split weights come together for use.

Fully sharded data parallelism: the batch is split over both axes of the mesh, the large arrays of the state over
"fsdp". Stages run on every device by themselves (`PerDevice`), and gather a block's weights just before it runs,
forward and backward; gradients are scattered again at once. All else is split by XLA's partitioner.
"""

import contextlib
import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from rmt_jax.models import Pictures, Run
from rmt_jax.ops import formulations

Tree = Any

AXES = ("data", "fsdp")

# Which arrays of the state are split over the mesh axis "fsdp"; the first match decides. Optimiser moments and the
# moving average carry their parameter's path, so they follow it.
SHARDING_RULES: tuple[tuple[str, bool], ...] = (
    (r"(^|/)kernel$", True),
    (r"", False),
)

_IN_BLOCK = re.compile(r"(^|/)layers/\d+/blocks/\d+/")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis; -1 takes what the other leaves.

    Attributes:
        data: splits the batch only; of several slices of TPUs the axis that goes from one to the next.
        fsdp: splits the batch and the large arrays of the state.
        min_split: arrays of fewer elements are kept whole on every device: splitting them saves nothing.
    """

    data: int = -1
    fsdp: int = 1
    min_split: int = 2**16


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh over all devices of all processes, or over those given.

    Of several TPU slices "data" spans them all and "fsdp" stays within one, where the links are fast.

    Raises:
        ValueError: the axes do not multiply to the number of devices, or "fsdp" does not fit into a slice.
    """
    devices = jax.devices() if devices is None else devices
    data, fsdp = _axis_sizes(config, len(devices))
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if data % slices:
        raise ValueError(
            f"mesh.data={config.data} and mesh.fsdp={config.fsdp} give {data} x {fsdp} devices, but there are {slices} "
            f"slices of {len(devices) // slices} devices, and mesh.fsdp must divide a slice."
        )
    # Where an axis is no product of sides of the slice, a side may be shared between both.
    if slices > 1:
        grid = mesh_utils.create_hybrid_device_mesh(
            (data // slices, fsdp), (slices, 1), devices, allow_split_physical_axes=True
        )
    else:
        grid = mesh_utils.create_device_mesh((data, fsdp), devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 2)


def _axis_sizes(config: MeshConfig, devices: int) -> tuple[int, int]:
    sizes = [config.data, config.fsdp]
    known = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) == 1 and known > 0 and devices % known == 0:
        sizes[sizes.index(-1)] = devices // known
    if math.prod(sizes) != devices or min(sizes) < 1:
        raise ValueError(
            f"mesh.data={config.data} and mesh.fsdp={config.fsdp} do not make {devices} device(s). "
            f"Use mesh.data=-1, or two numbers whose product is {devices}."
        )
    return sizes[0], sizes[1]


def check_division(name: str, batch_size: int, devices: int, parts: int) -> None:
    """Raises ValueError, with what would do, for a batch that devices cannot divide among them in `parts` parts."""
    multiple = devices * parts
    if batch_size % multiple:
        pieces = f"{devices} device(s)" + (f" x grad_accum_steps={parts}" if parts > 1 else "")
        below, above = batch_size // multiple * multiple, -(-batch_size // multiple) * multiple
        choice = f"{below} or {above}" if below else str(above)
        raise ValueError(f"{name}={batch_size} cannot be divided over {pieces}. Use {choice}.")


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def platform_of(mesh: Mesh) -> str:
    """cpu, gpu or tpu."""
    return str(mesh.devices.flat[0].platform)


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


class Placement:
    """Where each array belongs: split along its largest axis that "fsdp" divides, or whole on every device.

    Attributes:
        mesh: the devices.
        min_split: arrays of fewer elements stay whole, see `MeshConfig`.
    """

    def __init__(self, mesh: Mesh, min_split: int):
        self.mesh, self.min_split = mesh, min_split

    def wants_split(self, path: Any, leaf: Any) -> bool:
        """Whether the rules and its size ask to split an array, which may still not divide."""
        split = next(split for pattern, split in SHARDING_RULES if re.search(pattern, _name(path)))
        return split and self.mesh.shape["fsdp"] > 1 and math.prod(leaf.shape) >= self.min_split

    def sharding(self, path: Any, leaf: Any) -> NamedSharding:
        """Of one array, by its path and shape."""
        axes = [axis for axis, size in enumerate(leaf.shape) if size % self.mesh.shape["fsdp"] == 0]
        if not axes or not self.wants_split(path, leaf):
            return replicated(self.mesh)
        spec: list[str | None] = [None] * leaf.ndim
        spec[max(axes, key=lambda axis: leaf.shape[axis])] = "fsdp"
        return NamedSharding(self.mesh, PartitionSpec(*spec))

    def shardings(self, tree: Tree) -> Tree:
        """Of every array."""
        return jax.tree.map_with_path(self.sharding, tree)

    def undivided(self, tree: Tree) -> list[str]:
        """Paths of the arrays that should be split but do not divide."""
        return [
            _name(path)
            for path, leaf in jax.tree.leaves_with_path(tree)
            if self.wants_split(path, leaf) and self.sharding(path, leaf).is_fully_replicated
        ]


class WeightGather:
    """Makes a model's split parameters whole, in the type that they are computed in; the gradient comes back split.

    Those of blocks stay as they are: `PerDevice` gathers them.
    """

    def __init__(self, placement: Placement, dtype: DTypeLike):
        self._placement, self._dtype = placement, dtype

    def __call__(self, params: Tree) -> Tree:
        """The same tree."""
        return jax.tree.map_with_path(self._whole, params)

    def _whole(self, path: Any, leaf: Array) -> Array:
        sharding = self._placement.sharding(path, leaf)
        if sharding.is_fully_replicated or _IN_BLOCK.search(_name(path)):
            return leaf
        # Kernels are cast where they are used: cast before, half the bytes travel.
        return _gather(sharding, leaf.astype(self._dtype))


@dataclasses.dataclass(frozen=True)
class PerDevice:
    """Runs a stage on every device's own pictures, see `models.block_loop`; gradients of weights are those of all.

    Attributes:
        mesh: the devices, over all of whose axes pictures are split.
        placement: of the weights; None where they are whole on every device.
        dtype: that split weights are computed in, and in which they travel.
    """

    mesh: Mesh
    placement: Placement | None = None
    dtype: DTypeLike = jnp.float32

    def __call__(self, run: Run, pictures: Pictures, weights: list[Any]) -> Array:
        """run(a device's pictures, its part of each block's weights, what makes a block's whole), put together."""
        specs = jax.tree.map_with_path(self._spec, weights)

        def whole(leaf: Array, spec: PartitionSpec) -> Array:
            if "fsdp" not in spec:
                return leaf
            return jax.lax.all_gather(leaf.astype(self.dtype), "fsdp", axis=spec.index("fsdp"), tiled=True)

        def run_part(pictures: Pictures, weights: list[Any]) -> Array:
            return run(pictures, weights, lambda block: jax.tree.map(whole, block, specs[0]))

        part = PartitionSpec(self.mesh.axis_names)
        of_whole = jax.shard_map(run_part, mesh=self.mesh, in_specs=(part, specs), out_specs=part, check_vma=False)
        return of_whole(pictures, weights)

    def _spec(self, path: Any, leaf: Array) -> PartitionSpec:
        return PartitionSpec() if self.placement is None else self.placement.sharding(path, leaf).spec


@contextlib.contextmanager
def formulations_for(mesh: Mesh) -> Iterator[None]:
    """For tracing a program for these devices: their platform's formulations, and kernels of the size of their memory.

    And where there are several, those that the compiler can split, but for what `PerDevice` runs.
    """
    with formulations.asking(platform_of(mesh)), jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        yield


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gather(sharding: NamedSharding, split: Array) -> Array:
    split = jax.lax.with_sharding_constraint(split, sharding)
    return jax.lax.with_sharding_constraint(split, NamedSharding(sharding.mesh, PartitionSpec()))


def _gather_forward(sharding: NamedSharding, split: Array) -> tuple[Array, None]:
    return _gather(sharding, split), None


def _gather_backward(sharding: NamedSharding, _: None, gradient: Array) -> tuple[Array]:
    return (jax.lax.with_sharding_constraint(gradient, sharding),)


_gather.defvjp(_gather_forward, _gather_backward)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
