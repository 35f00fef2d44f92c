"""The rung of training: from the outputs to the weights after some steps."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import torch.nn.functional as F
from flax import nnx
from jax import Array
from torch import Tensor, nn

from rmt_jax.convert import to_torch
from rmt_jax.models import RMTConfig, rmt
from rmt_jax.tasks.classification import AUX_LOSS_WEIGHT
from rmt_jax.tasks.losses import cross_entropy
from rmt_jax.training.optimizer import OptimizerConfig, make_optimizer, update_ema
from rmt_jax.training.state import split_model
from tests.ladder.case import EMA_DECAY, STEPS, Case, Row
from tests.ladder.comparing import as_numpy, channels_first, compiled, error, models
from tests.parity import silence


class Batch(NamedTuple):
    """Images, and soft targets of every picture and of every token."""

    images: Any
    targets: Any
    token_targets: Any


def batch(case: Case, salt: int) -> Batch:
    """A training batch."""
    count, *size = case.shape
    tokens = count, *(math.ceil(side / rmt.MIN_SIZE) for side in size)
    rng = np.random.default_rng((case.seed, 5, salt))
    targets, token_targets = (rng.dirichlet(np.ones(case.config.num_classes), shape) for shape in (count, tokens))
    return Batch(case.images(salt), targets.astype(np.float32), token_targets.astype(np.float32))


def our_step(case: Case, graph: nnx.GraphDef, optimizer: optax.GradientTransformation) -> Callable[..., Any]:
    """(state, batch) -> (state, loss, outputs, gradients); the state is (params, batch_stats, opt_state, ema)."""
    box = {} if case.mix_box is None else {"mix_boxes": jnp.array([case.mix_box])}

    def loss_fn(params: Any, batch_stats: Any, batch: Batch) -> tuple[Array, Any]:
        model = nnx.merge(graph, params, batch_stats)
        outputs = as_tuple(model(batch.images, **box))
        loss = cross_entropy(outputs[0], batch.targets)
        for tokens in outputs[1:]:
            loss += AUX_LOSS_WEIGHT * cross_entropy(tokens, batch.token_targets)
        return loss, (outputs, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))

    def step(state: Any, batch: Batch) -> tuple[Any, Array, tuple[Array, ...], Any]:
        params, batch_stats, opt_state, ema = state
        gradients = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, (outputs, batch_stats)), grads = gradients(params, batch_stats, batch)
        updates, opt_state = optimizer.update(silence(grads, zero_gradients(case.config)), opt_state, params)
        params = jax.tree.map(jnp.add, params, updates)
        ema = update_ema(ema, (params, batch_stats), EMA_DECAY)
        return (params, batch_stats, opt_state, ema), loss, outputs, grads

    return compiled(step)


def their_loss(case: Case, model: nn.Module, batch: Batch) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Cross entropy of the logits and half that of the token logits, and both."""
    x, targets, token_targets = map(case.theirs, batch)
    outputs = as_tuple(model(channels_first(x), mix_box=case.mix_box))
    loss = F.cross_entropy(outputs[0], targets)
    for tokens in outputs[1:]:
        loss = loss + 0.5 * F.cross_entropy(tokens.flatten(0, 2), token_targets.flatten(0, 2))
    return loss, outputs


def their_optimizer(config: OptimizerConfig, model: nn.Module) -> torch.optim.Optimizer:
    """PyTorch's AdamW with upstream's groups."""
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for key, parameter in model.named_parameters():
        (others if parameter.ndim <= 1 or key.endswith(".bias") else decayed).append(parameter)
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    betas = config.beta1, config.beta2
    return torch.optim.AdamW(groups, betas=betas, eps=config.epsilon, weight_decay=config.weight_decay)


def as_tuple(outputs: Any) -> tuple[Any, ...]:
    """(logits,) or (logits, token logits)."""
    return outputs if isinstance(outputs, tuple) else (outputs,)


def zero_gradients(config: RMTConfig) -> set[str]:
    """PyTorch's names of the biases that only shift what a BatchNorm centres: of gradient zero but for rounding."""
    keys = {f"patch_embed.proj.{i}.bias" for i in (0, 3, 6, 9)}
    keys |= {f"layers.{i}.downsample.reduction.bias" for i in range(3)}
    tap = config.aux_tap if config.aux_head else None
    if tap != "proj":
        keys.add("proj.bias")
    if tap not in ("features", "proj"):  # then the last block leads to the last BatchNorm only
        last = f"layers.3.blocks.{config.depths[3] - 1}.ffn"
        keys |= {f"{last}.fc2.bias", f"{last}.dwconv.conv.bias"}
    return keys


def training(case: Case) -> Iterator[Row]:
    """Some steps of AdamW. Of the first, everything; of the others the losses; weights and statistics at the end."""
    ours, theirs = models(case)
    ours.train()
    theirs.train()
    graph, params, batch_stats = split_model(ours)
    optimizer = make_optimizer(case.optimizer, learning_rate)
    step = our_step(case, graph, optimizer)
    state = params, batch_stats, compiled(optimizer.init)(params), (params, batch_stats)
    their_optim = their_optimizer(case.optimizer, theirs)
    initial = their_ema = weights(theirs)

    for i in range(STEPS):
        examples = batch(case, i)
        state, loss, outputs, grads = step(state, examples)
        expected_loss, expected_outputs = their_loss(case, theirs, examples)
        their_optim.zero_grad()
        expected_loss.backward()
        yield Row(f"loss {i}", error(loss, expected_loss), "loss")
        if i == 0:
            for output, expected_output in zip(outputs, expected_outputs, strict=True):
                yield Row(f"output {output.shape}", error(output, expected_output), "model")
            yield from gradient_rows(case, to_torch(grads), theirs)
            for key, value in to_torch(state[1]).items():
                yield Row(key, error(value, weights(theirs)[key]), "statistic")
        silence_theirs(case, theirs)
        for group in their_optim.param_groups:
            group["lr"] = learning_rate(i)
        their_optim.step()
        new = weights(theirs)
        their_ema = {key: EMA_DECAY * old + (1 - EMA_DECAY) * new[key] for key, old in their_ema.items()}

    for name, (our_params, our_stats), expected in (("", state[:2], weights(theirs)), ("EMA of ", state[3], their_ema)):
        for key, value in to_torch(our_stats).items():
            yield Row(f"{name}{key} at the end", error(value, expected[key]), "statistic")
        if case.dtype == "float32":  # AdamW makes whole steps of whatever bfloat16 makes of a small gradient
            for key, value in to_torch(our_params).items():
                moved = distance(initial[key].numpy(), expected[key])
                # Where the gradient is almost zero, the weight's own rounding is all that moves.
                least = 0.01 * sum(map(learning_rate, range(STEPS))) * math.sqrt(value.size)
                yield Row(f"{name}{key}", distance(value, expected[key]) / max(moved, least), "weight")


def learning_rate(step: Any) -> Any:
    """A schedule."""
    return 1e-3 * (1 + step)


def silence_theirs(case: Case, model: nn.Module) -> None:
    """Sets gradients that are only rounding to zero, and clips the rest."""
    for key, parameter in model.named_parameters():
        if key in zero_gradients(case.config) and parameter.grad is not None:
            parameter.grad.zero_()
    if case.optimizer.clip_norm is not None:
        nn.utils.clip_grad_norm_(model.parameters(), case.optimizer.clip_norm)


def gradient_rows(case: Case, ours: dict[str, np.ndarray], theirs: nn.Module) -> Iterator[Row]:
    """Gradients: the distance as a share of the gradient's norm, where that is not zero of the largest norm."""
    expected = {key: parameter.grad for key, parameter in theirs.named_parameters()}
    if set(ours) != set(expected):
        raise ValueError(f"gradients of other parameters: {set(ours) ^ set(expected)}")
    norms = {key: float(np.linalg.norm(as_numpy(gradient))) for key, gradient in expected.items()}
    distances = {key: distance(ours[key], gradient) for key, gradient in expected.items()}
    zeros = zero_gradients(case.config)
    for key in zeros:
        yield Row(key, distances[key] / max(norms.values()), "zero gradient")
    if case.dtype == "float32":
        for key in norms.keys() - zeros:
            yield Row(key, distances[key] / norms[key], "gradient")
    else:  # a few numbers of one parameter may be little but noise
        yield Row("all gradients", math.hypot(*distances.values()) / math.hypot(*norms.values()), "gradient")


def distance(ours: np.ndarray, theirs: Tensor | None) -> float:
    """Norm of the difference."""
    return float(np.linalg.norm(ours - as_numpy(theirs)))


def weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of everything that a moving average follows."""
    state = model.state_dict().items()
    return {key: value.clone() for key, value in state if value.ndim and "Relpos" not in key}
