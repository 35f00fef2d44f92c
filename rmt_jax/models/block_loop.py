"""How the blocks of a stage are run one after the other. None of it changes a number beyond rounding."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.experimental.xla_metadata import set_xla_metadata
from jaxtyping import Float, Key

from rmt_jax.models.layers import LINEAR, RETAINED, Map, drop_path
from rmt_jax.ops import Valid, formulations

Remat = Literal["none", "dots", "full"]

_POLICIES: dict[str, Any] = {
    "dots": jax.checkpoint_policies.save_only_these_names(LINEAR),
    "full": None,
}

_RETENTION = jax.checkpoint_policies.save_only_these_names(RETAINED)

# Makes whole what is split over devices: weights, any tree, to the same tree.
Gather = Callable[[Any], Any]


class Pictures(NamedTuple):
    """What a stage is given of each picture, which the others do not matter to.

    Attributes:
        x: maps.
        keep: what drop path multiplies the branches of each block with, None for no drop path.
        valid: sizes of pictures that do not fill their maps, see `Block`.
    """

    x: Map
    keep: Float[Array, "batch blocks branches=2"] | None
    valid: Valid | None


# Blocks on pictures: (pictures, weights of each block, what makes a block's whole) -> maps.
Run = Callable[[Pictures, list[Any], Gather], Map]

# One block: (maps, weights, drop path's factors) -> maps.
Block = Callable[[Map, Any, Float[Array, "branches=2 batch"] | None], Map]

# Where pictures are split over devices: the same with each device's own, put together. No compiler can split a kernel.
PerDevice = Callable[[Run, Pictures, list[Any]], Map]

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
    per_device: PerDevice | None = None,
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
        per_device: where pictures are split over devices. Weights that are split, too, are made whole for a block just
            before it runs, and again where it is recomputed.
        valid: sizes of pictures that do not fill their maps, see `Block`.
    """
    graph = nnx.graphdef(blocks[0])
    weights = [nnx.to_pure_dict(nnx.state(block)) for block in blocks]
    keep = None if keys is None else drop_path(keys, jnp.asarray([block.drop_path for block in blocks]), len(x))

    def run(pictures: Pictures, weights: list[Any], gather: Gather) -> Map:
        def block(x: Map, weights: Any, keep: Array | None) -> Map:
            module: Any = nnx.merge(graph, gather(weights))
            return module(x, keep, pictures.valid)

        if remat != "none":
            block = jax.checkpoint(block, policy=_POLICIES[remat], prevent_cse=not scan)
        x, keep = pictures.x, None if pictures.keep is None else jnp.moveaxis(pictures.keep, 0, -1)
        if scan and len(weights) > 1:
            stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *weights)
            return jax.lax.scan(lambda x, inputs: (block(x, *inputs), None), x, (stacked, keep))[0]
        call = _traced_once(block) if _is_staged() else block
        for index, of_block in enumerate(weights):
            x = call(x, of_block, None if keep is None else keep[index])
        return x

    def run_in_parts(pictures: Pictures, weights: list[Any], gather: Gather) -> Map:
        part = pictures_at_a_time(pictures.x)
        return run(pictures, weights, gather) if part is None else _in_parts(run, part, pictures, weights, gather)

    pictures = Pictures(x, None if keep is None else jnp.moveaxis(keep, -1, 0), valid)
    if per_device is None:
        return run_in_parts(pictures, weights, lambda whole: whole)
    return per_device(run_in_parts, pictures, weights)


def _is_staged() -> bool:
    """Whether what runs now is traced to be compiled, and not computed at once, one operation after the other."""
    return isinstance(jnp.zeros(()), jax.core.Tracer)


def _traced_once(block: Block) -> Block:
    """The same, traced once for all calls. Where XLA is to keep the calls, it compiles one block's loops for all."""
    if formulations.chosen_here("block_calls") == "inlined":
        return jax.jit(block)

    @jax.jit
    def body(x: Map, weights: Any, keep: Array | None) -> Map:
        with set_xla_metadata(inlineable="true"):  # what is called in there: the functions of jax.numpy
            return block(x, weights, keep)

    def call(x: Map, weights: Any, keep: Array | None) -> Map:
        with set_xla_metadata(inlineable="false"):
            return body(x, weights, keep)

    return call


def pictures_at_a_time(x: Map) -> int | None:
    """How many pictures go through the blocks of a stage together, all parts being of one size; None for all."""
    batch, *numbers = x.shape
    if formulations.chosen_here("blocks") == "all_pictures" or not isinstance(batch, int):  # of any number, in exports
        return None
    most = max(1, NUMBERS_AT_A_TIME // math.prod(numbers))
    if most > MOST_PICTURES or most >= batch:
        return None
    return max(part for part in range(1, most + 1) if batch % part == 0)


def _in_parts(run: Run, size: int, pictures: Pictures, weights: list[Any], gather: Gather) -> Map:
    """The same as run(pictures, weights, gather), on so many pictures at a time."""
    parts = jax.tree.map(lambda leaf: leaf.reshape(-1, size, *leaf.shape[1:]), pictures)
    run_part = jax.checkpoint(lambda part: run(part, weights, gather), policy=_RETENTION, prevent_cse=False)
    return jax.lax.map(run_part, parts).reshape(pictures.x.shape)
