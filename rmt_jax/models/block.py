"""A block of RMT (paper, figure 3): position encoding, Manhattan self-attention, feed-forward network.

Maps are [batch height width channels]; parameter paths keep the names of the authors' PyTorch code. The scopes name
what a profile shows.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Float

from rmt_jax.models.layers import RETAINED, DepthwiseConv2d, LayerNorm, Linear
from rmt_jax.models.variants import RMTConfig
from rmt_jax.ops import (
    FFNWeights,
    Heads,
    Valid,
    attend,
    ffn_fits,
    formulations,
    fused_ffn,
    gelu,
    log_decay_rates,
    masa,
    pairs_to_halves,
)

Map = Float[Array, "batch height width channels"]


class Retention(nnx.Module):
    """Manhattan self-attention with local enhancement (LePE), paper section 3.2."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        decay_start: float | int,
        decay_span: float | int,
        decomposed: bool,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.q_proj = Linear(dim, dim, dtype=dtype, rngs=rngs)
        self.k_proj = Linear(dim, dim, dtype=dtype, rngs=rngs)
        self.v_proj = Linear(dim, dim, dtype=dtype, rngs=rngs)
        self.lepe = DepthwiseConv2d(dim, 5, dtype=dtype, rngs=rngs)
        self.out_proj = Linear(dim, dim, dtype=dtype, rngs=rngs)
        log_rates = log_decay_rates(num_heads, decay_start, decay_span)
        self.heads = Heads(tuple(log_rates.tolist()), decomposed)

    def __call__(self, x: Map, valid: Valid | None = None) -> Map:
        """[batch height width channels] -> the same shape; nothing outside of pictures of `valid` sizes is read."""
        q, k = self._queries_and_keys(x)
        v = self.v_proj(x)
        with jax.named_scope("masa"):
            retained = masa(q, k, v, self.heads, valid)
        with jax.named_scope("lepe"):
            local = self.lepe(v, valid)
        return self.out_proj(checkpoint_name(retained + local, RETAINED))

    def attention(self, x: Map, row: int | Array, column: int | Array) -> Float[Array, "batch heads height width"]:
        """How much of every position's value goes into the output of one position, before LePE is added.

        Each head's map A sums to 1, and the output at (row, column) is the sum of A[h, w] v[h, w] over all positions.
        Full retention: A is that position's row of the softmax,

            A[h, w] = softmax over all (h, w) of (q[row, column] k[h, w] + log(gamma) (|row - h| + |column - w|)).

        Decomposed retention carries values along each row h to `column`, and what arrives there along the column:

            A[h, w] = down[h] across[h, w]
            down[h] = softmax over h of (q[row, column] k[h, column] + log(gamma) |row - h|)
            across[h, w] = softmax over w of (q[h, column] k[h, w] + log(gamma) |column - w|)

        so that a row has its share by its key in the position's column, and spreads it by its query there.

        Args:
            x: the layer's input.
            row: of the position; may be traced, as the column may.
            column: of the position.
        """
        q, k = self._queries_and_keys(x)
        heads = len(self.heads.log_rates)

        def output(values: Array) -> Array:
            return attend(q, k, values, self.heads)[:, row, column, :: q.shape[-1] // heads].sum()

        # The output is linear in the values, so its gradient is the weights, whatever computes it. In float32, where
        # they sum to 1 whatever queries and keys are computed in.
        weights = jax.grad(output)(jnp.zeros(q.shape, jnp.float32)).reshape(*q.shape[:3], heads, -1)
        return jnp.moveaxis(weights[..., 0], -1, 1)

    def _queries_and_keys(self, x: Map) -> tuple[Map, Map]:
        """As projected, in the order of channels that `rotate` works with."""
        reorder = functools.partial(pairs_to_halves, num_heads=len(self.heads.log_rates))
        q, k = (
            projection.project(x, *(reorder(jnp.asarray(w[...])) for w in (projection.kernel, projection.bias)))
            for projection in (self.q_proj, self.k_proj)
        )
        return q, k


class FFN(nnx.Module):
    """Feed-forward network with a depthwise convolution around its hidden layer's residual."""

    def __init__(self, dim: int, hidden: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.fc1 = Linear(dim, hidden, dtype=dtype, rngs=rngs)
        self.dwconv = DepthwiseConv2d(hidden, 3, dtype=dtype, rngs=rngs)
        self.fc2 = Linear(hidden, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Map, valid: Valid | None = None) -> Map:
        """[batch height width channels] -> the same shape; nothing outside of pictures of `valid` sizes is read."""
        h = gelu(self.fc1(x))
        with jax.named_scope("dwconv"):
            mixed = self.dwconv(h, valid, residual=True)
        return self.fc2(mixed)


class Block(nnx.Module):
    """Conditional position encoding, retention and FFN, each a residual branch (paper, figure 3)."""

    def __init__(self, config: RMTConfig, stage: int, drop_path: float, *, dtype: DTypeLike, rngs: nnx.Rngs):
        dim = config.embed_dims[stage]
        self.pos = DepthwiseConv2d(dim, 3, dtype=dtype, rngs=rngs)
        self.retention_layer_norm = LayerNorm(dim, dtype=dtype, rngs=rngs)
        self.retention = Retention(
            dim,
            config.num_heads[stage],
            decay_start=config.decay_start,
            decay_span=config.decay_spans[stage],
            decomposed=config.decomposed[stage],
            dtype=dtype,
            rngs=rngs,
        )
        self.final_layer_norm = LayerNorm(dim, dtype=dtype, rngs=rngs)
        self.ffn = FFN(dim, int(dim * config.mlp_ratios[stage]), dtype=dtype, rngs=rngs)
        scale = config.layer_scale[stage]
        self.gamma_1 = None if scale is None else nnx.Param(jnp.full((dim,), scale, jnp.float32))
        self.gamma_2 = None if scale is None else nnx.Param(jnp.full((dim,), scale, jnp.float32))
        self.drop_path = drop_path

    def __call__(self, x: Map, keep: Float[Array, "branches=2 batch"] | None = None, valid: Valid | None = None) -> Map:
        """[batch height width channels] -> the same shape.

        Args:
            x: maps.
            keep: what drop path multiplies each picture's branches with, see `layers.drop_path`.
            valid: sizes of pictures that do not fill their maps; what is outside of them is not read, and there the
                result means nothing.
        """
        first, second = (None, None) if keep is None else keep
        with jax.named_scope("position"):
            x = self.pos(x, valid, residual=True)
        with jax.named_scope("retention"):
            x, normal = self.retention_layer_norm.residual(x)
            branch = self.retention(normal, valid)
            x = x + _kept(_scale(self.gamma_1, branch), first)
        with jax.named_scope("ffn"):
            if valid is None and self._has_kernel(x):
                return self._fused_ffn(x, jnp.ones(len(x)) if second is None else second)
            x, normal = self.final_layer_norm.residual(x)
            branch = self.ffn(normal, valid)
            return x + _kept(_scale(self.gamma_2, branch), second)

    def _has_kernel(self, x: Map) -> bool:
        (_, height, width, _), fc1 = x.shape, self.ffn.fc1
        channels, hidden = fc1.kernel.shape
        return formulations.chosen_here("ffn") == "kernel" and ffn_fits(height, width, channels, hidden, fc1.dtype)

    def _fused_ffn(self, x: Map, keep: Float[Array, " batch"]) -> Map:
        """The same by a kernel, drop path included."""
        norm, layers = self.final_layer_norm, (self.ffn.fc1, self.ffn.dwconv, self.ffn.fc2)
        leaves = [
            norm.scale,
            norm.bias,
            *(leaf for layer in layers for leaf in (layer.kernel, layer.bias)),
            self.gamma_2,
        ]
        weights = FFNWeights._make(None if leaf is None else jnp.asarray(leaf[...]) for leaf in leaves)
        return fused_ffn(x.astype(self.ffn.fc1.dtype), keep, weights, norm.epsilon)


def _scale(gamma: nnx.Param | None, x: Array) -> Array:
    return x if gamma is None else gamma[...].astype(x.dtype) * x


def _kept(branch: Map, keep: Float[Array, " batch"] | None) -> Map:
    if keep is None:
        return branch
    return (branch.astype(jnp.float32) * keep[:, None, None, None]).astype(branch.dtype)
