"""Operations on several devices as a stage of a model runs them: each on its own pictures."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec


def per_device(function: Callable[..., Any], mesh: jax.sharding.Mesh, *, weights: int = 0) -> Callable[..., Any]:
    """A function of the whole arrays, of which the last `weights` have no pictures."""
    pictures, whole = PartitionSpec(mesh.axis_names), PartitionSpec()

    def run(*arguments: Any) -> Any:
        specs = [pictures] * (len(arguments) - weights) + [whole] * weights
        return jax.shard_map(function, mesh=mesh, in_specs=tuple(specs), out_specs=pictures, check_vma=False)(
            *arguments
        )

    return run
