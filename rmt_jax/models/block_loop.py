"""How the blocks of a stage are run one after the other. None of it changes a number beyond rounding."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float, Key

from rmt_jax.models.layers import LINEAR, RETAINED, Map, drop_path
from rmt_jax.ops import Valid, formulations

Remat = Literal["none", "dots", "full"]

_POLICIES: dict[str, Any] = {
    "dots": jax.checkpoint_policies.save_only_these_names(LINEAR),
    "full": None,
}

_RETENTION = jax.checkpoint_policies.save_only_these_names(RETAINED)

# Makes whole what is split over devices: the weights of a block, any tree, to the same tree.
Gather = Callable[[Any], Any]

# CPUs take as many pictures at a time as have so many numbers in their maps: 1 MiB of float32, the cache of a core. Of
# maps so small that more than MOST_PICTURES fit, all at once are as fast.
NUMBERS_AT_A_TIME = 2**18
MOST_PICTURES = 3


def run_blocks(
    blocks: Sequence[Any],
    x: Map,
    keys: Key[Array, " blocks"] | None,
    *,
    remat: Remat = "none",
    scan: bool = False,
    gather: Gather | None = None,
    valid: Valid | None = None,
) -> Map:
    """x through all blocks, which have parameters only and are equal but for their values and drop path rates.

    All pictures at once or, on CPUs, a few at a time through all blocks, see `formulations`. Then nothing inside of the
    blocks but what retention gives is kept for the backward pass, which computes the rest again, whatever `remat` says:
    what fits into the cache is computed again in less time than it takes to write it to memory and read it.

    Args:
        blocks: modules called with (x, drop path's factors, valid), each with its own `drop_path`, a rate.
        x: [batch height width channels].
        keys: one for each block, None for no drop path.
        remat: what is recomputed in the backward pass instead of kept: "none"; "dots", all but the linear layers'
            outputs; "full", the whole block. Less memory, more time.
        scan: compile one block and loop over the stacked weights: quicker to compile. On TPUs it costs memory where
            nothing is recomputed, since all that is kept gets stacked.
        gather: applied to a block's weights just before it runs, and again where the block is recomputed.
        valid: sizes of pictures that do not fill their maps, see `Block`.
    """
    graph = nnx.graphdef(blocks[0])
    weights = [nnx.to_pure_dict(nnx.state(block)) for block in blocks]
    keep = None if keys is None else drop_path(keys, jnp.asarray([block.drop_path for block in blocks]), len(x))

    def run(x: Map, weights: Any, keep: Array | None, valid: Valid | None) -> Map:
        if gather is not None:
            weights = gather(weights)
        block: Any = nnx.merge(graph, weights)
        return block(x, keep, valid)

    body: Callable[..., Map] = run
    if remat != "none":
        body = jax.checkpoint(run, policy=_POLICIES[remat], prevent_cse=not scan)

    def run_all(x: Map, keep: Float[Array, "blocks branches=2 batch"] | None, valid: Valid | None) -> Map:
        if scan and len(blocks) > 1:
            stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *weights)
            return jax.lax.scan(lambda x, inputs: (body(x, *inputs, valid), None), x, (stacked, keep))[0]
        for index in range(len(blocks)):
            x = body(x, weights[index], None if keep is None else keep[index], valid)
        return x

    pictures = pictures_at_a_time(x)
    return run_all(x, keep, valid) if pictures is None else _in_parts(run_all, pictures, x, keep, valid)


def pictures_at_a_time(x: Map) -> int | None:
    """How many pictures go through the blocks of a stage together, all parts being of one size; None for all."""
    batch, *numbers = x.shape
    if formulations.chosen_here("blocks") == "all_pictures" or not isinstance(batch, int):  # of any number, in exports
        return None
    most = max(1, NUMBERS_AT_A_TIME // math.prod(numbers))
    if most > MOST_PICTURES or most >= batch:
        return None
    return max(part for part in range(1, most + 1) if batch % part == 0)


def _in_parts(run: Callable[..., Map], pictures: int, x: Map, keep: Array | None, valid: Valid | None) -> Map:
    """The same as run(x, keep, valid), on so many pictures at a time."""

    def run_part(part: tuple[Map, Array | None, Valid | None]) -> Map:
        x, keep, valid = part
        return run(x, None if keep is None else jnp.moveaxis(keep, 0, -1), valid)

    whole = x, None if keep is None else jnp.moveaxis(keep, -1, 0), valid
    parts = jax.tree.map(lambda leaf: leaf.reshape(-1, pictures, *leaf.shape[1:]), whole)
    run_part = jax.checkpoint(run_part, policy=_RETENTION, prevent_cse=False)
    return jax.lax.map(run_part, parts).reshape(x.shape)
