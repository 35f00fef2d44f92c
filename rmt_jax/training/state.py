"""The training state, plain nested dicts, and the step that moves it."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array

from rmt_jax.models import Gather
from rmt_jax.ops import computed_once
from rmt_jax.tasks import Task
from rmt_jax.training.optimizer import Rules, global_norm, keep_unless, select, update_ema

# Folded into a step's key for `Task.prepare`. Not a number that nnx.Rngs reaches with its own 0, 1, 2, ...
_PREPARE = 2**32 - 1

Tree = Any
State = dict[str, Tree]  # step, params, batch_stats, opt_state, ema: {params, batch_stats}
Batch = Mapping[str, Array]


def split_model(model: nnx.Module) -> tuple[nnx.GraphDef, Tree, Tree]:
    """(graph, parameters, BatchNorm statistics), the last two as plain dicts."""
    graph, state = nnx.split(model)
    params, batch_stats = nnx.split_state(state, nnx.Param, nnx.BatchStat)
    return graph, nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats)


def init_state(params: Tree, batch_stats: Tree, optimizer: optax.GradientTransformation) -> State:
    """The state at step 0; the moving average starts as a copy of the weights."""
    return {
        "step": jnp.zeros((), jnp.int32),
        "params": params,
        "batch_stats": batch_stats,
        "opt_state": optimizer.init(params),
        # Copies, because the step donates its state and must not be given one buffer twice.
        "ema": jax.tree.map(jnp.copy, {"params": params, "batch_stats": batch_stats}),
    }


def make_train_step(
    task: Task,
    graph: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    ema_decay: float,
    grad_accum_steps: int = 1,
    frozen_rules: Rules | None = None,
    gather: Gather | None = None,
) -> Callable[[State, Batch, Tree], tuple[State, dict[str, Array]]]:
    """The pure function (state, batch, frozen) -> (state, metrics) of one optimiser step.

    Its randomness is a function of the seed and the step alone. With gradient accumulation the batch is cut into
    `grad_accum_steps` parts, BatchNorm sees one part after the other, and the gradients are averaged. `frozen` goes to
    `Task.prepare`. Parameters that `frozen_rules` select get no gradient. `gather` makes the parameters outside of the
    blocks whole, where the state is split over devices.

    Where the loss or the norm of the gradients is not finite, nothing but the counts of steps moves: the next step has
    the data and the learning rate it would have had anyway. The metric "skipped" is then 1, and 0 otherwise.
    """

    def loss_fn(params: Tree, batch_stats: Tree, batch: Batch, key: Array) -> tuple[Array, Any]:
        if frozen_rules is not None:
            fixed = jax.lax.stop_gradient(params)
            frozen = select(params, frozen_rules)
            params = jax.tree.map(lambda free, fixed, stop: fixed if stop else free, params, fixed, frozen)
        if gather is not None:
            params = gather(params)
        model = nnx.merge(graph, params, batch_stats)
        loss, metrics = task.loss(model, batch, nnx.Rngs(key))
        return loss, (nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)), metrics)

    gradients = jax.value_and_grad(loss_fn, has_aux=True)

    def train_step(state: State, batch: Batch, frozen: Tree) -> tuple[State, dict[str, Array]]:
        batch, stop = take_stop(batch)
        key = jax.random.fold_in(jax.random.key(seed), state["step"])
        batch = task.prepare(batch, jax.random.fold_in(key, _PREPARE), frozen)
        if grad_accum_steps == 1:
            (_, (batch_stats, metrics)), grads = gradients(state["params"], state["batch_stats"], batch, key)
        else:
            groups = len(batch["image"]) // task.inseparable
            parts = jax.tree.map(lambda x: _deal(x, grad_accum_steps, together=len(x) // groups), batch)
            keys = jax.random.split(key, grad_accum_steps)
            grads, batch_stats, metrics = _accumulate(gradients, state["params"], state["batch_stats"], (parts, keys))
        with jax.named_scope("optimizer"):
            norm = global_norm(grads)
            finite = computed_once(jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm))
            skipped = (~finite).astype(jnp.float32)
            updates, opt_state = optimizer.update(grads, state["opt_state"], state["params"], norm=norm, finite=finite)
            params = keep_unless(finite, optax.apply_updates(state["params"], updates), state["params"])
            params = computed_once(params)  # for the moving average, too
            moved = {
                "batch_stats": batch_stats,
                "ema": update_ema(state["ema"], {"params": params, "batch_stats": batch_stats}, ema_decay),
            }
            kept = keep_unless(finite, moved, {name: state[name] for name in moved})
            state = {"step": state["step"] + 1, "params": params, "opt_state": opt_state, **kept}
            return state, metrics | {"grad_norm": norm, "skipped": skipped} | stop

    return train_step


def _accumulate(
    gradients: Callable[..., Any], params: Tree, batch_stats: Tree, parts: tuple[Batch, Array]
) -> tuple[Tree, Tree, dict[str, Array]]:
    """(mean gradients, statistics after the last part, mean metrics) of parts stacked along the leading axis."""

    def one_part(carry: tuple[Tree, Tree], part: tuple[Batch, Array]) -> tuple[tuple[Tree, Tree], Any]:
        total, stats = carry
        (_, (stats, metrics)), grads = gradients(params, stats, *part)
        return (jax.tree.map(jnp.add, total, grads), stats), metrics

    zeros = jax.tree.map(jnp.zeros_like, params)
    (total, batch_stats), metrics = jax.lax.scan(one_part, (zeros, batch_stats), parts)
    grads = jax.tree.map(lambda g: g / len(parts[1]), total)
    return grads, batch_stats, jax.tree.map(lambda m: m.mean(axis=0), metrics)


def make_predict_step(
    task: Task, graph: nnx.GraphDef, *, gather: Gather | None = None
) -> Callable[[Tree, Batch], dict[str, Array]]:
    """The pure function ({params, batch_stats}, batch) -> what the task's metric takes; `gather` as in training."""

    def predict_step(weights: Tree, batch: Batch) -> dict[str, Array]:
        batch, stop = take_stop(batch)
        params = weights["params"] if gather is None else gather(weights["params"])
        return task.predict(nnx.merge(graph, params, weights["batch_stats"]), batch) | stop

    return predict_step


def take_stop(batch: Batch) -> tuple[dict[str, Array], dict[str, Array]]:
    """(the batch without "stop", {"stop": whether any process asks for it}, empty where the batch does not say)."""
    rest = {name: value for name, value in batch.items() if name != "stop"}
    return rest, {"stop": jnp.any(batch["stop"])} if "stop" in batch else {}


def _deal(x: Array, parts: int, together: int) -> Array:
    """[batch ...] -> [parts batch/parts ...], every parts-th row of `together`: so each device keeps what it has."""
    rows = jnp.swapaxes(x.reshape(-1, parts, together, *x.shape[1:]), 0, 1)
    return rows.reshape(parts, -1, *x.shape[1:])
