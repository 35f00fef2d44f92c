"""How far this package is from the numbers recorded from upstream, as one table: python -m tests.parity

Float32 under the highest matmul precision. The tests hold every row to its tolerance.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rmt_jax.convert import from_torch, relpos_constants, to_torch, torch_key
from rmt_jax.models import Classifier, abstract_model, create_model, variant
from rmt_jax.models.arrays import flat_paths
from rmt_jax.tasks.classification import AUX_LOSS_WEIGHT
from rmt_jax.tasks.losses import cross_entropy
from rmt_jax.training.optimizer import WEIGHT_DECAY_RULES, OptimizerConfig, make_optimizer, select, update_ema
from rmt_jax.training.schedule import ScheduleConfig, cosine
from rmt_jax.training.state import split_model
from tests.golden import golden

MODELS = ("rmt_t", "rmt_s", "rmt_s_star")

OUTPUT_TOLERANCE = 2e-5  # of the output's largest magnitude
GRADIENT_TOLERANCE = 1e-4  # of each parameter's gradient norm
ZERO_GRADIENT_TOLERANCE = 2e-6  # of the largest gradient norm


class Row(NamedTuple):
    """One comparison: the largest error, relative as its name says."""

    fixture: str
    case: str
    error: float
    tolerance: float


def relative_error(ours: Any, expected: Any, scale: float | None = None) -> float:
    """Largest absolute error as a share of the largest expected magnitude (or of `scale`)."""
    ours, expected = np.asarray(ours), np.asarray(expected)
    if ours.shape != expected.shape:
        raise ValueError(f"shapes differ: {ours.shape}, expected {expected.shape}")
    return float(np.max(np.abs(ours - expected)) / (np.max(np.abs(expected)) if scale is None else scale))


def meta(fixture: str) -> dict[str, Any]:
    """How a fixture was made."""
    return json.loads((golden.ROOT / f"{fixture}.json").read_text())


def golden_model(name: str) -> Classifier:
    """A model without drop path, in training mode, with the weights that the fixtures were recorded with."""
    abstract = abstract_model(lambda rngs: create_model(name, drop_path=0.0, rngs=rngs))
    graph, state = nnx.split(abstract)
    model = nnx.merge(graph, jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state))
    from_torch(golden.state_dict(name), model)
    return model


def images(seed: int, shape: list[int]) -> jax.Array:
    """A fixture's images in our layout."""
    array = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return jnp.asarray(array.transpose(0, 2, 3, 1))


def zero_gradient_biases(name: str) -> set[str]:
    """Upstream's keys of biases that feed straight into BatchNorm: their gradient is zero but for rounding."""
    keys = {f"patch_embed.proj.{i}.bias" for i in (0, 3, 6, 9)} | {"proj.bias"}
    keys |= {f"layers.{i}.downsample.reduction.bias" for i in range(3)}
    config = variant(name)
    if not config.aux_head:  # the last block then leads to nothing but the projection's BatchNorm
        last = f"layers.3.blocks.{config.depths[3] - 1}.ffn"
        keys |= {f"{last}.fc2.bias", f"{last}.dwconv.conv.bias"}
    return keys


def inference_rows(name: str) -> Iterator[Row]:
    """Logits and the output of every stage at two sizes."""
    cases, expected = meta(name)["cases"], golden.expected(name)
    model = golden_model(name)
    model.eval()

    def run(model: Classifier, x: jax.Array) -> dict[str, jax.Array]:
        maps = model.backbone(x)
        after = [
            f if stage.downsample is None else stage.downsample(f)
            for f, stage in zip(maps, model.backbone.layers, strict=True)
        ]
        stages = {f"stage{i}": f for i, f in enumerate([model.backbone.patch_embed(x), *after])}
        return {"logits": model(x)} | stages

    run = jax.jit(run)
    for case in ("square", "wide"):
        outputs = run(model, images(cases[case]["seed"], cases[case]["shape"]))
        yield Row(
            name,
            f"{case}: logits",
            relative_error(outputs.pop("logits"), expected[f"{case}/logits"]),
            OUTPUT_TOLERANCE,
        )
        for stage, output in outputs.items():
            info = cases[f"{case}/{stage}"]
            part = np.asarray(output)[tuple(slice(None, None, stride) for stride in info["stride"])]
            error = relative_error(part, expected[f"{case}/{stage}"], info["absmax"])
            yield Row(name, f"{case}: {stage}", error, OUTPUT_TOLERANCE)


def training_rows(name: str) -> Iterator[Row]:
    """Training-mode outputs, loss, gradients and updated BatchNorm statistics of one batch."""
    case, expected, norms = meta(name)["cases"]["train"], golden.expected(name), meta(name)["train_grad_norms"]
    graph, params, batch_stats = split_model(golden_model(name))
    labels = jax.nn.one_hot(np.array(case["labels"]), 1000)

    def loss_fn(params: Any, batch_stats: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        model = nnx.merge(graph, params, batch_stats)
        outputs = model(x)
        logits, *aux = outputs if isinstance(outputs, tuple) else (outputs,)
        loss = cross_entropy(logits, labels)
        for tokens in aux:
            loss += AUX_LOSS_WEIGHT * cross_entropy(tokens, labels[:, None, None])
        return loss, (logits, aux, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))

    step = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
    (loss, (logits, aux, stats)), grads = step(params, batch_stats, images(case["seed"], case["shape"]))

    key = "train/cls" if aux else "train/logits"
    yield Row(name, "train: logits", relative_error(logits, expected[key]), OUTPUT_TOLERANCE)
    for tokens in aux:
        error = relative_error(strided_tokens(tokens), expected["train/aux"])
        yield Row(name, "train: token logits", error, OUTPUT_TOLERANCE)
    yield Row(name, "train: loss", relative_error(loss, expected["train/loss"]), OUTPUT_TOLERANCE)

    ours = to_torch(grads)
    if set(ours) != set(norms):
        raise ValueError(f"gradients of other parameters: {set(ours) ^ set(norms)}")
    zero, largest = zero_gradient_biases(name), max(norms.values())
    errors = {key: abs(torch_norm(ours[key]) - norms[key]) for key in norms}
    error = max(errors[key] / norms[key] for key in norms if key not in zero)
    yield Row(name, f"train: {len(norms) - len(zero)} gradient norms", error, GRADIENT_TOLERANCE)
    error = max(errors[key] / largest for key in zero)
    yield Row(name, f"train: {len(zero)} zero gradients", error, ZERO_GRADIENT_TOLERANCE)
    stored = [key.removeprefix("train/grad/") for key in expected if key.startswith("train/grad/")]
    error = max(relative_error(ours[key], expected[f"train/grad/{key}"]) for key in stored)
    yield Row(name, f"train: {len(stored)} whole gradients", error, GRADIENT_TOLERANCE)

    buffers = to_torch(stats)
    stored = [key.removeprefix("train/buffer/") for key in expected if key.startswith("train/buffer/")]
    error = max(relative_error(buffers[key], expected[f"train/buffer/{key}"]) for key in stored)
    yield Row(name, f"train: {len(stored)} BatchNorm buffers", error, OUTPUT_TOLERANCE)


def torch_norm(array: np.ndarray) -> float:
    """PyTorch's float32 vector norm on a CPU, which the fixtures recorded: eight running float32 sums of squares.

    On a million elements it is off by 7e-4 of the true norm, and this is off by the same to seven digits.
    """
    squares = np.square(array.astype(np.float32).ravel())
    squares = np.pad(squares, (0, -len(squares) % 8)).reshape(-1, 8)
    return float(np.sqrt(np.cumsum(squares, axis=0, dtype=np.float32)[-1].sum(dtype=np.float32)))


def strided_tokens(aux: jax.Array) -> np.ndarray:
    """[batch height width classes] -> [batch tokens classes/10], as the fixtures store token logits."""
    return np.asarray(aux).reshape(aux.shape[0], -1, aux.shape[-1])[..., ::10]


def mix_token_rows() -> Iterator[Row]:
    """A starred model in training mode with a fixed mix-token box."""
    info, expected = meta("mix_token"), golden.expected("mix_token")
    model = golden_model(info["weights_of"])
    boxes = jnp.asarray(expected["box"], jnp.int32)[None]
    run = jax.jit(lambda model, x, boxes: model(x, mix_boxes=boxes))
    logits, aux = run(model, images(info["seed"], info["shape"]), boxes)
    yield Row("mix_token", "logits", relative_error(logits, expected["cls"]), OUTPUT_TOLERANCE)
    yield Row("mix_token", "token logits", relative_error(strided_tokens(aux), expected["aux"]), OUTPUT_TOLERANCE)


def relpos_rows() -> Iterator[Row]:
    """Rotary angles and decay rates, elementwise relative."""
    expected = golden.expected("relpos")
    for name in ("rmt_t", "rmt_s"):
        ours = relpos_constants(variant(name))
        errors = [np.max(np.abs(ours[key] / expected[f"{name}/{key}"] - 1)) for key in ours]
        yield Row("relpos", name, float(max(errors)), 1e-5)


def optimizer_rows(config: OptimizerConfig | None = None) -> Iterator[Row]:
    """AdamW and EMA on given gradients."""
    info, expected = meta("optimizer"), golden.expected("optimizer")
    optimizer = make_optimizer(config or OptimizerConfig(), 1e-3)

    def tree(prefix: str) -> dict[str, Any]:
        part = {
            key.removeprefix(f"{prefix}/"): value for key, value in expected.items() if key.startswith(f"{prefix}/")
        }
        # Layer 0 is linear, layer 1 a LayerNorm: our names for their weights.
        return {
            "gamma_1": part["gamma_1"],
            "0": {"kernel": part["0.weight"], "bias": part["0.bias"]},
            "1": {"scale": part["1.weight"], "bias": part["1.bias"]},
        }

    params = ema = jax.tree.map(jnp.asarray, tree("init"))
    state = optimizer.init(params)
    for step in range(info["steps"]):
        updates, state = optimizer.update(tree(f"grad{step}"), state, params)
        params = jax.tree.map(jnp.add, params, updates)
        ema = update_ema(ema, params, info["ema_decay"])
    for name, ours in (("final", params), ("ema", ema)):
        errors = jax.tree.map(relative_error, ours, tree(name))
        yield Row("optimizer", f"{name} weights", max(jax.tree.leaves(errors)), 1e-6)


def trajectory_rows(config: OptimizerConfig | None = None) -> Iterator[Row]:
    """Eight AdamW steps of rmt_t with EMA: losses, then logits of both weights."""
    info, expected = meta("trajectory_rmt_t"), golden.expected("trajectory_rmt_t")
    model = golden_model(info["weights_of"])
    graph, params, batch_stats = split_model(model)
    model.eval()
    eval_graph = split_model(model)[0]
    optimizer = make_optimizer(config or OptimizerConfig(), 1e-3)
    silenced = set(info["gradients_set_to_zero"])

    def loss_fn(params: Any, batch_stats: Any, x: jax.Array, targets: jax.Array) -> tuple[jax.Array, Any]:
        model = nnx.merge(graph, params, batch_stats)
        return cross_entropy(model(x), targets), nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

    @jax.jit
    def step(state: Any, x: jax.Array, targets: jax.Array) -> tuple[Any, jax.Array]:
        params, batch_stats, opt_state, ema = state
        (loss, batch_stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, batch_stats, x, targets)
        grads = silence(grads, silenced)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = jax.tree.map(jnp.add, params, updates)
        ema = update_ema(ema, (params, batch_stats), info["ema_decay"])
        return (params, batch_stats, opt_state, ema), loss

    state, losses = (params, batch_stats, optimizer.init(params), (params, batch_stats)), []
    for s in range(info["steps"]):
        rng = np.random.default_rng(900 + s)
        x = rng.standard_normal((info["batch"], 3, info["size"], info["size"])).astype(np.float32)
        targets = rng.random((info["batch"], 1000)) ** 8
        targets /= targets.sum(axis=1, keepdims=True)
        state, loss = step(state, jnp.asarray(x.transpose(0, 2, 3, 1)), jnp.asarray(targets, jnp.float32))
        losses.append(float(loss))
    error = float(np.max(np.abs(np.array(losses) / expected["losses"] - 1)))
    yield Row("trajectory_rmt_t", f"{len(losses)} losses", error, 1e-6)
    x = images(info["eval_seed"], info["eval_shape"])
    predict = jax.jit(lambda weights: nnx.merge(eval_graph, *weights)(x))
    for case, weights in (("logits", state[:2]), ("ema_logits", state[3])):
        yield Row("trajectory_rmt_t", case, relative_error(predict(weights), expected[case]), 2e-4)


def silence(grads: Any, torch_keys: set[str]) -> Any:
    """Gradients with those of some of upstream's parameters set to zero."""
    known = {torch_key(path) for path, _ in flat_paths(grads)}
    if not torch_keys <= known:
        raise ValueError(f"no such parameters: {torch_keys - known}")

    def zero(path: Any, leaf: jax.Array) -> jax.Array:
        key = torch_key(jax.tree_util.keystr(path, simple=True, separator="/"))
        return jnp.zeros_like(leaf) if key in torch_keys else leaf

    return jax.tree.map_with_path(zero, grads)


def learning_rate_rows() -> Iterator[Row]:
    """The schedule against what upstream logged, elementwise relative."""
    log = meta("lr_log")
    config = ScheduleConfig(warmup_lr=log["warmup_lr"], min_lr=log["min_lr"])
    for name in ("rmt_t", "rmt_s_star"):
        epochs = log[name]["epochs_total"]
        ours = cosine(config, log["peak"], epochs)
        error = max(abs(ours[int(epoch)] / value - 1) for epoch, value in log[name]["lr"].items())
        yield Row("lr_log", f"{name}, {epochs} epochs", float(error), 1e-9)


def no_decay_keys() -> set[str]:
    """Upstream's keys of the parameters of rmt_t that our rules do not decay."""
    _, params, _ = split_model(abstract_model(lambda rngs: create_model("rmt_t", rngs=rngs)))
    return {torch_key(path) for path, decays in flat_paths(select(params, WEIGHT_DECAY_RULES)) if not decays}


SECTIONS: Mapping[str, Callable[[], Iterator[Row]]] = {
    **{f"{name} inference": (lambda name=name: inference_rows(name)) for name in MODELS},
    **{f"{name} training": (lambda name=name: training_rows(name)) for name in MODELS},
    "mix_token": mix_token_rows,
    "relpos": relpos_rows,
    "optimizer": optimizer_rows,
    "trajectory": trajectory_rows,
    "lr_log": learning_rate_rows,
}


def print_table(sections: Mapping[str, Callable[[], Iterator[Row]]]) -> None:
    """Print the table; exit code 1 when a row is beyond its tolerance."""
    from rich.console import Console
    from rich.table import Table

    jax.config.update("jax_default_matmul_precision", "highest")
    table = Table(
        "fixture", "case", "relative error", "tolerance", "", title="Distance from upstream's recorded numbers"
    )
    rows = [row for section in sections.values() for row in section()]
    for row in rows:
        verdict = "ok" if row.error <= row.tolerance else "FAILS"
        table.add_row(row.fixture, row.case, f"{row.error:.1e}", f"{row.tolerance:.0e}", verdict)
    Console(width=None if os.isatty(1) else 100).print(table)
    raise SystemExit(any(row.error > row.tolerance for row in rows))


if __name__ == "__main__":
    print_table(SECTIONS)
