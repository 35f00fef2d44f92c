"""The mesh, and where each array lives on it."""

import dataclasses
import math
import re
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

Tree = Any

# Which arrays of the state are split over the mesh axis "fsdp"; the first match decides. Optimiser moments and the
# moving average carry their parameter's path, so they follow it.
SHARDING_RULES: tuple[tuple[str, bool], ...] = (
    (r"/kernel$", True),
    (r"", False),
)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis; -1 takes what the other leaves.

    Attributes:
        data: splits the batch only.
        fsdp: splits the batch and the large arrays of the state.
    """

    data: int = -1
    fsdp: int = 1


def make_mesh(config: MeshConfig) -> Mesh:
    """The mesh over all devices of all processes.

    Raises:
        ValueError: the axes do not multiply to the number of devices.
    """
    devices = jax.device_count()
    sizes = [config.data, config.fsdp]
    known = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) == 1 and known > 0 and devices % known == 0:
        sizes[sizes.index(-1)] = devices // known
    if math.prod(sizes) != devices or min(sizes) < 1:
        raise ValueError(
            f"mesh.data={config.data} and mesh.fsdp={config.fsdp} do not make {devices} device(s). "
            f"Use mesh.data=-1, or two numbers whose product is {devices}."
        )
    return jax.make_mesh(tuple(sizes), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def state_sharding(mesh: Mesh, state: Tree) -> tuple[Tree, list[str]]:
    """Sharding of every array of the state, and the paths that should be split but do not divide.

    An array that `SHARDING_RULES` selects is split along its largest axis that "fsdp" divides, else kept whole.
    """
    fsdp = mesh.shape["fsdp"]
    whole: list[str] = []

    def place(path: Any, leaf: Any) -> NamedSharding:
        name = "/" + jax.tree_util.keystr(path, simple=True, separator="/")
        if fsdp == 1 or not next(split for pattern, split in SHARDING_RULES if re.search(pattern, name)):
            return replicated(mesh)
        axes = [axis for axis, size in enumerate(leaf.shape) if size % fsdp == 0]
        if not axes:
            whole.append(name[1:])
            return replicated(mesh)
        spec: list[str | None] = [None] * leaf.ndim
        spec[max(axes, key=lambda axis: leaf.shape[axis])] = "fsdp"
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map_with_path(place, state), whole
