"""What a rung is given: an architecture, a size, types and a seed, as hypothesis draws them."""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import torch
from hypothesis import strategies as st
from jax import Array
from torch import Tensor

from rmt_jax.models import RMTConfig
from rmt_jax.models.variants import AuxTap
from rmt_jax.training.optimizer import OptimizerConfig
from tests import torch_rmt

STEPS = 3
EMA_DECAY = 0.9
# With upstream's epsilon of 1e-8, AdamW makes whole steps of rounding wherever a gradient is almost zero, as that of a
# key's bias is along slow rotary pairs. The recorded trajectory has the small one.
OPTIMIZER = OptimizerConfig(epsilon=1e-4)


class Row(NamedTuple):
    """One comparison: what, the error, and the sort of number it is, which decides on the tolerance."""

    what: str
    error: float
    sort: str


@dataclasses.dataclass(frozen=True)
class Case:
    """Everything that a rung needs.

    Attributes:
        config: architecture.
        shape: (batch, height, width), in pixels for the stem and whole models, else in positions of a map.
        seed: of weights and inputs.
        dtype: our type to compute in.
        reference: PyTorch's type.
        stage: whose part is compared, from 0.
        scale: standard deviation of a part's input; of whole models the BatchNorms that lead to a stage scale by it.
        headless: the backbone instead of the classifier.
        mix_box: of mix-token, in tokens.
        optimizer: of training.
    """

    config: RMTConfig
    shape: tuple[int, int, int]
    seed: int = 0
    dtype: str = "float32"
    reference: str = "float32"
    stage: int = 0
    scale: float = 1.0
    headless: bool = False
    mix_box: tuple[int, int, int, int] | None = None
    optimizer: OptimizerConfig = OPTIMIZER

    @property
    def dim(self) -> int:
        """Channels of the stage."""
        return self.config.embed_dims[self.stage]

    @property
    def heads(self) -> int:
        """Retention heads of the stage."""
        return self.config.num_heads[self.stage]

    @property
    def head_dim(self) -> int:
        """Channels of one head."""
        return self.dim // self.heads

    @property
    def decay(self) -> tuple[float, float]:
        """Start and span of the stage's decays."""
        return self.config.decay_start, self.config.decay_spans[self.stage]

    def normal(self, *shape: int, scale: float = 1.0, salt: int = 0) -> np.ndarray:
        """Random numbers that our type holds exactly, so that both sides start from the same."""
        array = scale * np.random.default_rng((self.seed, salt)).standard_normal(shape)
        return array.astype(jnp.dtype(self.dtype)).astype(np.float32)

    def input(self) -> np.ndarray:
        """A map of the stage."""
        return self.normal(*self.shape, self.dim, scale=self.scale)

    def images(self, salt: int = 0) -> np.ndarray:
        """Images, channels last."""
        return self.normal(*self.shape, 3, salt=salt)

    def ours(self, array: np.ndarray) -> Array:
        """In our type."""
        return jnp.asarray(array, self.dtype)

    def theirs(self, array: np.ndarray) -> Tensor:
        """In PyTorch's type."""
        return torch.from_numpy(np.array(array)).to(getattr(torch, self.reference))

    def relpos(self) -> torch_rmt.RelPos:
        """The reference's constants of the stage."""
        return torch_rmt.RelPos(self.dim, self.heads, *self.decay).to(getattr(torch, self.reference))


# --- What hypothesis draws. It begins with the first of every choice: together they are an ordinary model. ---

PRECISIONS = (("float32", "float32"), ("float32", "float64"), ("bfloat16", "float32"))
HEADS_AND_DIMS = ((2, 6), (3, 4), (1, 10), (4, 2), (2, 8), (3, 6))  # fewer than 8 channels are hardly a LayerNorm
SEEDS = st.integers(0, 2**16)
AUX_TAPS: tuple[AuxTap | None, ...] = ("features", None, "proj", "norm", "activation")


def four(values: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    """One for each stage."""
    return st.tuples(values, values, values, values)


@st.composite
def configs(draw: st.DrawFn, headless: bool = False) -> RMTConfig:
    """Architectures of few channels."""
    heads, head_dims = zip(*draw(four(st.sampled_from(HEADS_AND_DIMS))), strict=True)
    tap = None if headless else draw(st.sampled_from(AUX_TAPS))
    deeper = draw(st.integers(0, 4))  # one stage at most has two blocks: compiling a block takes half a second
    options: dict[str, Any] = {"aux_head": True, "aux_tap": tap} if tap else {}
    return RMTConfig(
        embed_dims=tuple(n * dim for n, dim in zip(heads, head_dims, strict=True)),
        depths=(1 + (deeper == 1), 1 + (deeper == 2), 1 + (deeper == 3), 1 + (deeper == 4)),
        num_heads=heads,
        mlp_ratios=draw(four(st.sampled_from((2, 3, 4, 1, 2.3)))),
        decay_spans=draw(four(st.sampled_from((4, 6, 0)) | st.floats(1, 8))),
        decomposed=draw(four(st.sampled_from((True, False)))),
        # A factor as small as upstream's leaves rounding of the gradients of the last block.
        layer_scale=draw(four(st.sampled_from((None, 0.5, *([0.02] if headless else []))))),
        decay_start=draw(st.just(2) | st.floats(0.5, 4)),
        proj_dim=draw(st.integers(8, 24)),
        num_classes=draw(st.integers(2, 9)),
        extra_norms=headless and not draw(st.booleans()),
        **options,
    )


@st.composite
def parts(draw: st.DrawFn) -> Case:
    """One part of a stage on a map."""
    dtype, reference = draw(st.sampled_from(PRECISIONS))
    config, stage = draw(configs()), draw(st.integers(0, 3))
    size = st.integers(1, 14)
    shape = draw(st.integers(1, 3)), draw(size), draw(size)
    return Case(config, shape, draw(SEEDS), dtype, reference, stage, draw(st.sampled_from((1.0, 0.1, 10.0))))


@st.composite
def pictures(draw: st.DrawFn, headless: bool = False) -> Case:
    """A whole model, or its stem, in evaluation mode: any size from the smallest."""
    dtype, reference = draw(st.sampled_from(PRECISIONS))
    size = st.integers(32, 80)
    shape = draw(st.integers(1, 3)), draw(size), draw(size)
    scale = draw(st.sampled_from((1.0, 0.1)))
    return Case(draw(configs(headless)), shape, draw(SEEDS), dtype, reference, scale=scale, headless=headless)


@st.composite
def batches(draw: st.DrawFn) -> Case:
    """A classifier in training mode.

    The last map has 2x2 positions or more and the batch two images, so that BatchNorm sees eight values: of two, it
    returns nothing but signs, and the gradients of everything before it are rounding noise.
    """
    dtype, reference = draw(st.sampled_from(2 * PRECISIONS[:2] + PRECISIONS[2:]))  # bfloat16 tells little of gradients
    config = draw(configs())
    box = None
    size = st.integers(33, 72)
    if config.aux_head and draw(st.booleans()):  # mix-token needs multiples of 32
        top, left = draw(st.integers(0, 1)), draw(st.integers(0, 1))
        box = (top, left, draw(st.integers(top + 1, 2)), draw(st.integers(left + 1, 2)))
        size = st.sampled_from((64, 96))
    shape = draw(st.integers(2, 3)), draw(size), draw(size)
    optimizer = dataclasses.replace(
        OPTIMIZER,
        beta1=draw(st.sampled_from((0.9, 0.5))),
        beta2=draw(st.sampled_from((0.999, 0.9))),
        weight_decay=draw(st.sampled_from((0.05, 0.3, 0.0))),
        clip_norm=draw(st.sampled_from((None, 0.3))),
    )
    return Case(config, shape, draw(SEEDS), dtype, reference, mix_box=box, optimizer=optimizer)
