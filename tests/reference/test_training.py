"""Training mode of the PyTorch reference: gradients, statistics, mix-token, eight steps of AdamW."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from tests import torch_rmt
from tests.reference.recorded import (
    CLASSIFIERS,
    GRADIENT_TOLERANCE,
    OUTPUT_TOLERANCE,
    TRAJECTORY_LOGITS_TOLERANCE,
    TRAJECTORY_LOSS_TOLERANCE,
    ZERO_GRADIENT_TOLERANCE,
    expected,
    images,
    meta,
    model_of,
    relative_error,
)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over samples and positions; logits [batch ... classes], labels [batch]."""
    log_probabilities = logits.log_softmax(-1).flatten(1, -2) if logits.ndim > 2 else logits.log_softmax(-1)[:, None]
    return -log_probabilities[torch.arange(len(labels)), :, labels].mean()


def strided_tokens(aux: Tensor) -> Tensor:
    """[batch height width classes] to [batch tokens classes/10], as the fixtures store token logits."""
    return aux.flatten(1, 2)[..., ::10]


def zero_gradient_biases(model: torch_rmt.RMT) -> set[str]:
    """Biases that feed straight into BatchNorm: their gradient is zero but for rounding."""
    keys = {f"patch_embed.proj.{i}.bias" for i in (0, 3, 6, 9)} | {"proj.bias"}
    keys |= {f"layers.{i}.downsample.reduction.bias" for i in range(3)}
    if model.aux_head is None:  # the last block then leads to nothing but the projection's BatchNorm
        last = f"layers.3.blocks.{len(model.layers[3].blocks) - 1}.ffn"
        keys |= {f"{last}.fc2.bias", f"{last}.dwconv.conv.bias"}
    return keys


def training_errors(model: torch_rmt.RMT, fixture: str) -> Iterator[tuple[str, float, float]]:
    """What was compared, its error and its tolerance."""
    case, arrays, norms = meta(fixture)["cases"]["train"], expected(fixture), meta(fixture)["train_grad_norms"]
    labels = torch.tensor(case["labels"])
    output = model.train()(images(case["seed"], case["shape"]))
    if model.aux_head is None:
        logits, loss = output, cross_entropy(output, labels)
        yield "logits", relative_error(logits, arrays["train/logits"]), OUTPUT_TOLERANCE
    else:
        logits, aux = output
        loss = cross_entropy(logits, labels) + 0.5 * cross_entropy(aux, labels)
        yield "logits", relative_error(logits, arrays["train/cls"]), OUTPUT_TOLERANCE
        yield "token logits", relative_error(strided_tokens(aux), arrays["train/aux"]), OUTPUT_TOLERANCE
    yield "loss", relative_error(loss, arrays["train/loss"]), OUTPUT_TOLERANCE

    loss.backward()
    gradients = {key: parameter.grad for key, parameter in model.named_parameters()}
    assert list(gradients) == list(norms)
    zero, largest = zero_gradient_biases(model), max(norms.values())
    for key, norm in norms.items():
        error = abs(gradients[key].norm().item() - norm)
        if key in zero:
            yield f"zero gradient {key}", error / largest, ZERO_GRADIENT_TOLERANCE
        else:
            yield f"gradient norm {key}", error / norm, GRADIENT_TOLERANCE
    state = model.state_dict()
    for key, array in arrays.items():
        if key.startswith("train/grad/"):
            error = relative_error(gradients[key.removeprefix("train/grad/")], array)
            yield f"gradient {key}", error, GRADIENT_TOLERANCE
        elif key.startswith("train/buffer/"):
            error = relative_error(state[key.removeprefix("train/buffer/")], array)
            yield f"buffer {key}", error, OUTPUT_TOLERANCE


@pytest.mark.parametrize("fixture", CLASSIFIERS)
def test_training(fixture: str) -> None:
    rows = list(training_errors(model_of(fixture), fixture))
    assert len([what for what, *_ in rows if what.startswith("gradient train")]) == 5
    assert len([what for what, *_ in rows if what.startswith("buffer")]) == 4
    for what, error, tolerance in rows:
        assert error < tolerance, what


def test_training_comparison_sees_another_momentum() -> None:
    model = model_of("rmt_t")
    model.norm.momentum = 0.11
    wrong = {what for what, error, tolerance in training_errors(model, "rmt_t") if error > 5 * tolerance}
    assert wrong == {"buffer train/buffer/norm.running_mean", "buffer train/buffer/norm.running_var"}


def test_training_comparison_sees_a_dropped_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    rotate = torch_rmt.rotate
    monkeypatch.setattr(torch_rmt, "rotate", lambda x, sin, cos: rotate(x, sin, cos).detach())  # same outputs
    model = model_of("rmt_t")
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)  # as those of q and k stay
    wrong = {what for what, error, tolerance in training_errors(model, "rmt_t") if error > 5 * tolerance}
    assert len([what for what in wrong if "gradient norm" in what and ".q_proj." in what]) == 2 * 14
    assert not {"logits", "loss"} & wrong


def mix_token_errors(box: tuple[int, ...] | None) -> tuple[float, float]:
    info, arrays = meta("mix_token"), expected("mix_token")
    model = model_of(info["weights_of"]).train()
    with torch.no_grad():
        logits, aux = model(images(info["seed"], info["shape"]), mix_box=box)
    return relative_error(logits, arrays["cls"]), relative_error(strided_tokens(aux), arrays["aux"])


def test_mix_token() -> None:
    box = tuple(expected("mix_token")["box"].tolist())
    assert max(mix_token_errors(box)) < OUTPUT_TOLERANCE
    top, left, bottom, right = box
    for wrong in (None, (left, top, right, bottom), (top, left, bottom + 1, right)):
        assert min(mix_token_errors(wrong)) > 100 * OUTPUT_TOLERANCE


def test_mix_box_where_it_has_no_meaning() -> None:
    small = {"depths": (1, 1, 1, 1), "num_classes": 7}
    x, box = torch.zeros(2, 3, 64, 64), (0, 0, 1, 1)
    for model in (
        torch_rmt.build("rmt_s_star", **small).eval(),
        torch_rmt.build("rmt_s", **small),
        torch_rmt.build("rmt_s", headless=True, **small),
    ):
        with pytest.raises(ValueError, match="aux_head in training mode"):
            model(x, mix_box=box)
    with pytest.raises(ValueError, match="multiples of 32"):
        torch_rmt.build("rmt_s_star", **small)(x[..., :48], mix_box=box)


def run_trajectory(exempt: Callable[[str, Tensor], bool]) -> tuple[list[str], float, float, float]:
    """AdamW steps with EMA: names without decay, the errors of the losses, of raw logits and of the EMA's logits."""
    info, arrays = meta("trajectory_rmt_t"), expected("trajectory_rmt_t")
    model, average = model_of(info["weights_of"]).train(), model_of(info["weights_of"])
    parameters = dict(model.named_parameters())
    without = sorted(name for name, parameter in parameters.items() if exempt(name, parameter))
    groups = [
        {"params": [parameters[name] for name in without], "weight_decay": 0.0},
        {"params": [value for name, value in parameters.items() if name not in without], "weight_decay": 0.05},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.999), eps=1e-8)
    losses = []
    for step in range(info["steps"]):
        rng = np.random.default_rng(900 + step)
        x = rng.standard_normal((info["batch"], 3, info["size"], info["size"])).astype(np.float32)
        targets = rng.random((info["batch"], 1000)) ** 8
        targets = torch.from_numpy((targets / targets.sum(axis=1, keepdims=True)).astype(np.float32))
        loss = -(targets * model(torch.from_numpy(x)).log_softmax(-1)).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        for name in info["gradients_set_to_zero"]:
            parameters[name].grad.zero_()
        optimizer.step()
        losses.append(loss.item())
        with torch.no_grad():
            for mean, new in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
                mean.copy_(info["ema_decay"] * mean + (1 - info["ema_decay"]) * new)
    x = images(info["eval_seed"], info["eval_shape"])
    with torch.no_grad():
        raw, ema = (relative_error(m.eval()(x), arrays[key]) for m, key in ((model, "logits"), (average, "ema_logits")))
    return without, float(np.max(np.abs(np.array(losses) / arrays["losses"] - 1))), raw, ema


def test_trajectory() -> None:
    exempt, losses, raw, ema = run_trajectory(lambda name, value: value.ndim <= 1 or name.endswith(".bias"))
    info = meta("trajectory_rmt_t")
    assert exempt == sorted(info["no_decay"])
    assert set(info["gradients_set_to_zero"]) == zero_gradient_biases(torch_rmt.build("rmt_t"))
    assert losses < TRAJECTORY_LOSS_TOLERANCE
    assert max(raw, ema) < TRAJECTORY_LOGITS_TOLERANCE


def test_trajectory_comparison_sees_decay_of_every_parameter() -> None:
    _, losses, raw, ema = run_trajectory(lambda name, value: False)
    assert losses > 5 * TRAJECTORY_LOSS_TOLERANCE
    assert raw > 5 * TRAJECTORY_LOGITS_TOLERANCE
    assert ema > 2 * TRAJECTORY_LOGITS_TOLERANCE
