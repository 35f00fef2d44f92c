"""What a model looks at: attention and decay as maps, for pictures and notebooks."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from rmt_jax.models.factory import AnyModel
from rmt_jax.models.rmt import Backbone, Images, check_images
from rmt_jax.models.variants import RMTConfig
from rmt_jax.ops import log_decay_rates


def attention_map(
    model: AnyModel, images: Images, *, stage: int, block: int, position: tuple[int | Array, int | Array]
) -> Float[Array, "batch heads height width"]:
    """What one position of a block attends to: the model's own forward pass up to there, none of what follows.

    Compiled, one program serves every position of pictures of one shape:

        attend = jax.jit(lambda model, images, position: attention_map(
            model, images, stage=3, block=-1, position=position))
        weights = attend(model, images, (y // 16, x // 16))

    Args:
        model: in evaluation mode: a classifier, a backbone, or a segmentor or detector, whose backbone is looked at.
        images: [batch height width 3] normalised floats, of any size that the model takes.
        stage: 1 to 4.
        block: of that stage, from 0; -1 is the last.
        position: (row, column) in the stage's map, whose stride is 4, 8, 16 or 32 pixels: that of pixel (x, y) is
            (y // stride, x // stride). Where it is traced, it is not checked.

    Returns:
        Each head's weights, float32, which sum to 1. Of decomposed retention the product of both steps: the formulas
        are those of `Retention.attention`.

    Raises:
        ValueError: a stage, block or position that is not there, or a model in training mode.
    """
    backbone = model if isinstance(model, Backbone) else model.backbone
    check_images(images)
    if not backbone.deterministic:
        raise ValueError("attention_map needs a model in evaluation mode: call model.eval() first.")
    depths = backbone.config.depths
    if not 1 <= stage <= len(depths):
        raise ValueError(f"stage is one of 1 to {len(depths)}, got {stage}.")
    if not -depths[stage - 1] <= block < depths[stage - 1]:
        raise ValueError(f"Stage {stage} has {depths[stage - 1]} blocks, got block {block}.")
    x = backbone.patch_embed(jnp.asarray(images, backbone.dtype))
    for before in list(backbone.layers)[: stage - 1]:
        x = before(x)
        if before.downsample is not None:
            x = before.downsample(x)
    known = [(at, size) for at, size in zip(position, x.shape[1:3], strict=True) if not isinstance(at, jax.core.Tracer)]
    if not all(0 <= at < size for at, size in known):
        raise ValueError(f"The map of stage {stage} is {x.shape[1]}x{x.shape[2]}, got position {position}.")
    blocks = list(backbone.layers[stage - 1].blocks)
    chosen = blocks[block]
    for earlier in blocks[: blocks.index(chosen)]:
        x = earlier(x)
    return chosen.retention.attention(chosen.retention_layer_norm(chosen.pos(x, residual=True)), *position)


def decay_map(
    config: RMTConfig, *, stage: int, size: tuple[int, int], position: tuple[int, int]
) -> Float[np.ndarray, "heads height width"]:
    """The prior of each head: gamma to the power of the Manhattan distance from a position (paper, equation 3).

    Args:
        config: architecture.
        stage: 1 to 4.
        size: (height, width) of the map.
        position: (row, column).
    """
    rates = log_decay_rates(config.num_heads[stage - 1], config.decay_start, config.decay_spans[stage - 1])
    rows, columns = (np.abs(np.arange(length) - at) for length, at in zip(size, position, strict=True))
    return np.exp(rates[:, None, None] * (rows[:, None] + columns).astype(np.float32))
