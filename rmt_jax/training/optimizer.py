"""AdamW with upstream's weight-decay groups, and the moving average of everything the model keeps."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax import Array

from rmt_jax.ops import computed_once

Tree = Any

# (pattern, whether): the first pattern that matches a parameter's path decides.
Rules = tuple[tuple[str, bool], ...]

# Which parameters decay. Upstream decays whatever has more than one dimension and is not a
# bias, which takes in its layer-scale factors: it stores them as 1x1x1xC.
WEIGHT_DECAY_RULES: Rules = (
    (r"/?kernel$", True),
    (r"/?gamma_[12]$", True),
    (r"", False),
)

# By the names of `OptimizerConfig.decay`. mmcv's rule for "norm" goes by the word in a parameter's name, which the
# norms of the stem and of the heads do not have; with norm_decay_mult=0 these are meant as well.
DECAY_RULES: dict[str, Rules] = {
    "matrices": WEIGHT_DECAY_RULES,
    "all": ((r"", True),),
    "all_but_norms": ((r"norm", False), (r"", True)),
    "all_but_norm_layers": ((r"norm|/bn/|patch_embed/proj/(1|4|7|10)/", False), (r"", True)),
}

# Which parameters a linear probe leaves alone.
FROZEN_RULES: Rules = (
    (r"^((aux_)?head|neck|decode_head|auxiliary_head|bbox_head|rpn_head|roi_head)/", False),
    (r"", True),
)

_BLOCK = re.compile(r"^backbone/layers/(\d+)/blocks/(\d+)/")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW.

    Attributes:
        learning_rate: peak, at `Config.reference_batch_size`; it grows linearly with the batch.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        epsilon: added to the root of the second moment.
        weight_decay: decoupled, times the learning rate.
        decay: which parameters it takes in: "matrices", all but biases and norms; "all"; "all_but_norms", as
            upstream's detectors and segmentors have it: all whose name has no "norm"; "all_but_norm_layers", as
            upstream's cascade has it: without the other norms too.
        clip_norm: largest global norm of the gradients; None does not clip (upstream).
        layer_decay: factor on the learning rate for each block further from the head, for fine-tuning; 1 is none.
    """

    learning_rate: float = 5e-4
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.05
    decay: Literal["matrices", "all", "all_but_norms", "all_but_norm_layers"] = "matrices"
    clip_norm: float | None = None
    layer_decay: float = 1.0

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise ValueError(f"optimizer.learning_rate={self.learning_rate}: expected a positive number.")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"optimizer.layer_decay={self.layer_decay}: expected 0 < layer_decay <= 1, e.g. 0.8.")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"optimizer.{name}={getattr(self, name)}: expected 0 <= {name} < 1.")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ValueError(f"optimizer.clip_norm={self.clip_norm}: expected a positive number, or None to not clip.")


def make_optimizer(
    config: OptimizerConfig,
    learning_rate: float | Callable[[Array], Array],
    *,
    frozen_rules: Rules | None = None,
) -> optax.GradientTransformationExtraArgs:
    """AdamW, after clipping and before layer-wise learning rates where the configuration says so.

    Its update takes two more, by name: `norm`, that of the gradients, where it is known, and whether all is `finite`:
    else the state stays as it is but for the learning rate's count of steps, and the updates are good for nothing.

    Args:
        config: its numbers; `config.learning_rate` is not read here.
        learning_rate: the value, or a function of the step.
        frozen_rules: which parameters stay as they are, None for none.
    """
    adamw = optax.chain(
        _scale_by_adam(config.beta1, config.beta2, config.epsilon),
        optax.add_decayed_weights(config.weight_decay, lambda params: select(params, DECAY_RULES[config.decay])),
        optax.scale_by_learning_rate(learning_rate),
    )
    parts = [] if config.clip_norm is None else [_clip(config.clip_norm)]
    parts.append(adamw)
    if config.layer_decay < 1:
        parts.append(optax.stateless(lambda updates, _: scale_layers(updates, config.layer_decay)))
    optimizer = optax.chain(*parts) if len(parts) > 1 else adamw
    if frozen_rules is None:
        return optimizer
    return optax.partition({False: optimizer, True: optax.set_to_zero()}, lambda params: select(params, frozen_rules))


def global_norm(tree: Tree) -> Array:
    """Of all numbers together; what has one dimension counts as one array: there are many, and each would be a loop."""
    leaves = jax.tree.leaves(tree)
    arrays = [leaf for leaf in leaves if leaf.ndim > 1]
    if vectors := [leaf.reshape(-1) for leaf in leaves if leaf.ndim <= 1]:
        arrays.append(jnp.concatenate(vectors))
    return jnp.sqrt(sum(jnp.square(array).sum() for array in arrays))


def keep_unless(finite: Array | bool, moved: Tree, state: Tree) -> Tree:
    """`moved` where `finite`, else `state`."""
    return jax.tree.map(lambda new, old: jnp.where(finite, new, old), moved, state)


def _clip(max_norm: float) -> optax.GradientTransformationExtraArgs:
    """As optax.clip_by_global_norm, but that the norm can be given."""

    def update(
        updates: Tree, state: Any, params: Tree = None, *, norm: Array | None = None, **_: Any
    ) -> tuple[Tree, Any]:
        known = global_norm(updates) if norm is None else norm
        clipped = jax.tree.map(lambda update: jnp.where(known < max_norm, update, update / known * max_norm), updates)
        return clipped, state

    return optax.GradientTransformationExtraArgs(optax.identity().init, update)


def _scale_by_adam(beta1: float, beta2: float, epsilon: float) -> optax.GradientTransformationExtraArgs:
    """As optax.scale_by_adam, but that its state stays as it is where a step is not `finite`.

    Decided of the state that optax returns, the moments would be computed twice, for the state and for the updates.
    """

    def update(
        grads: Tree, state: optax.ScaleByAdamState, params: Tree = None, *, finite: Array | bool = True, **_: Any
    ) -> tuple[Tree, optax.ScaleByAdamState]:
        mu = optax.tree.update_moment(grads, state.mu, beta1, 1)
        nu = optax.tree.update_moment_per_elem_norm(grads, state.nu, beta2, 2)
        moved = optax.ScaleByAdamState(optax.safe_increment(state.count), mu, nu)
        moved = computed_once(keep_unless(finite, moved, state))
        first, second = computed_once((1 - beta1**moved.count, 1 - beta2**moved.count))
        corrected = jax.tree.map(lambda m, v: (m / first) / (jnp.sqrt(v / second) + epsilon), moved.mu, moved.nu)
        return corrected, moved

    return optax.GradientTransformationExtraArgs(optax.scale_by_adam(beta1, beta2, epsilon).init, update)


def select(params: Tree, rules: Rules) -> Tree:
    """What the rules say of each parameter: True or False."""

    def selected(path: Any, _: Any) -> bool:
        return next(value for pattern, value in rules if re.search(pattern, _name(path)))

    return jax.tree.map_with_path(selected, params)


def scale_layers(updates: Tree, layer_decay: float) -> Tree:
    """Updates times layer_decay ** (blocks between the parameter and the head).

    The stem counts as the layer before the first block, a downsampling as the block before it, everything after the
    last block as the head, whose updates stay. Source: BEiT (arXiv 2106.08254), timm's `layer_decay`.
    """
    paths = [_name(path) for path, _ in jax.tree.leaves_with_path(updates)]
    depths: dict[int, int] = {}
    for match in filter(None, map(_BLOCK.match, paths)):
        stage, block = map(int, match.groups())
        depths[stage] = max(depths.get(stage, 0), block + 1)

    def layer(name: str) -> int:
        if match := _BLOCK.match(name):
            stage, block = map(int, match.groups())
            return 1 + sum(depths[s] for s in range(stage)) + block
        if name.startswith("backbone/patch_embed/"):
            return 0
        if match := re.match(r"^backbone/layers/(\d+)/downsample/", name):
            return sum(depths[s] for s in range(int(match[1]) + 1))
        return sum(depths.values()) + 1

    last = sum(depths.values()) + 1
    return jax.tree.map_with_path(lambda path, update: update * layer_decay ** (last - layer(_name(path))), updates)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def update_ema(ema: Tree, new: Tree, decay: float) -> Tree:
    """ema * decay + new * (1 - decay), leaf by leaf; no warm-up and no bias correction (timm's ModelEmaV2)."""
    return jax.tree.map(lambda old, value: old * decay + value * jnp.asarray(1 - decay, value.dtype), ema, new)
