"""How the blocks of a stage are run one after the other. None of it changes a number beyond rounding."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from rmt_jax.models.layers import LINEAR
from rmt_jax.ops import Valid

Remat = Literal["none", "dots", "full"]

_POLICIES: dict[str, Any] = {
    "dots": jax.checkpoint_policies.save_only_these_names(LINEAR),
    "full": None,
}

# Makes whole what is split over devices: the weights of a block, any tree, to the same tree.
Gather = Callable[[Any], Any]


def run_blocks(
    blocks: Sequence[Any],
    x: Array,
    keys: Array | None,
    *,
    remat: Remat = "none",
    scan: bool = False,
    gather: Gather | None = None,
    valid: Valid | None = None,
) -> Array:
    """x through all blocks, which have parameters only and are equal but for their values and drop path rates.

    Args:
        blocks: modules called with (x, key, drop path rate, valid), each with its own `drop_path.rate`.
        x: [batch height width channels].
        keys: one for each block, None for no drop path.
        remat: what is recomputed in the backward pass instead of kept: "none"; "dots", all but the linear layers'
            outputs; "full", the whole block. Less memory, more time.
        scan: compile one block and loop over the stacked weights: quicker to compile. On TPUs it costs memory where
            nothing is recomputed, since all that is kept gets stacked.
        gather: applied to a block's weights just before it runs, and again where the block is recomputed.
        valid: sizes of pictures that do not fill their maps, see `Block`.
    """
    graph, rates = nnx.graphdef(blocks[0]), [block.drop_path.rate for block in blocks]
    weights = [nnx.to_pure_dict(nnx.state(block)) for block in blocks]

    def run(x: Array, weights: Any, key: Array | None, rate: Array | float) -> Array:
        if gather is not None:
            weights = gather(weights)
        block: Any = nnx.merge(graph, weights)
        return block(x, key, rate, valid)

    body: Callable[..., Array] = run
    if remat != "none":
        body = jax.checkpoint(run, policy=_POLICIES[remat], prevent_cse=not scan, static_argnums=() if scan else (3,))
    if not scan or len(blocks) == 1:
        for index, rate in enumerate(rates):
            x = body(x, weights[index], None if keys is None else keys[index], rate)
        return x

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *weights)
    inputs = stacked, keys, jnp.asarray(rates, jnp.float32)
    return jax.lax.scan(lambda x, inputs: (body(x, *inputs), None), x, inputs)[0]
