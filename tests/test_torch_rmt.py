"""The PyTorch reference (tests/torch_rmt.py) against the numbers recorded from upstream, before it judges anything.

The numbers were recorded with PyTorch in float32 on a CPU, so only the order of sums may differ: tolerances are a few
float32 roundings. Each kind of comparison is also shown to fail for a model that is wrong in one respect.
"""

import ast
import copy
import functools
import importlib.util
import json
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests import torch_rmt
from tests.golden import golden

CLASSIFIERS = ("rmt_t", "rmt_s", "rmt_s_star")
SENSITIVE_BACKBONES = ("det_backbone_t_posgain01", "det_backbone_s_posgain01")  # late blocks matter in these
BACKBONES = ("det_backbone_t", "det_backbone_s", "seg_backbone_t", "seg_backbone_s", *SENSITIVE_BACKBONES)

# Shares of the output's largest magnitude. On the kind of processor that recorded them, stages agree to the last bit
# and logits to 3e-7. Other vector units or numbers of threads sum in another order: measured up to 9e-7.
OUTPUT_TOLERANCE = 2e-6
# Two of the dense fixtures grow their maps to 2e5, and upstream's own float32 is 1e-6 off its float64: measured 2e-6.
BACKBONE_TOLERANCE = 4e-6
# Gradients sum over every position of the batch, so roundings add up: measured up to 6e-6.
GRADIENT_TOLERANCE = 2e-5  # of a parameter's gradient norm, or of a gradient's largest magnitude
ZERO_GRADIENT_TOLERANCE = 1e-6  # of the largest norm: biases before BatchNorm, nothing but noise, measured 4e-8
TRAJECTORY_LOSS_TOLERANCE = 1e-6  # upstream's own noise is 1.4e-7, and so is ours
TRAJECTORY_LOGITS_TOLERANCE = 2e-4  # upstream's own noise is 4e-5, ours 6e-5 at most; mistakes show as 4e-4 and more
DEVIATION_TOLERANCE = 2e-3  # of float32's own deviation from float64, a few 1e-6: float64 agrees to 1e-8 and better


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums in one order whatever the machine, and no waiting for a core that another process uses."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def relative_error(ours: Any, expected: np.ndarray, scale: float | None = None) -> float:
    """Largest absolute error as a share of the largest expected magnitude (or of `scale`)."""
    ours = ours.detach().numpy() if isinstance(ours, Tensor) else np.asarray(ours)
    if ours.shape != expected.shape:
        raise ValueError(f"shapes differ: {ours.shape}, expected {expected.shape}")
    return float(np.max(np.abs(ours - expected)) / (np.max(np.abs(expected)) if scale is None else scale))


def images(seed: int, shape: list[int]) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


@functools.cache
def meta(fixture: str) -> dict[str, Any]:
    flat = golden.ROOT / f"{fixture}.json"
    path = flat if flat.exists() else golden.ROOT / "dense" / fixture / "meta.json"
    return json.loads(path.read_text())


@functools.cache
def expected(fixture: str) -> Mapping[str, np.ndarray]:
    return golden.expected(fixture)


def variant_and_options(fixture: str) -> tuple[str, dict[str, Any]]:
    if fixture in CLASSIFIERS:
        return fixture, {"drop_path": 0.0}
    return "rmt_s" if "_s" in fixture else "rmt_t", {"drop_path": 0.0, "headless": True, "extra_norms": True}


@functools.lru_cache(maxsize=3)  # rmt_s takes 100 MB
def loaded(fixture: str) -> torch_rmt.RMT:
    name, options = variant_and_options(fixture)
    model = torch_rmt.build(name, **options)
    state = {key: torch.from_numpy(array) for key, array in golden.state_dict(fixture).items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(".Relpos." in key for key in missing)  # the constants stay the model's own
    return model.eval()


def model_of(fixture: str) -> torch_rmt.RMT:
    """A model with the weights that a fixture was recorded with, in evaluation mode, the caller's own."""
    return copy.deepcopy(loaded(fixture))


# --- Names, shapes, sizes and constants ---


def recorded_shapes(fixture: str) -> list[tuple[str, tuple[int, ...]]]:
    if fixture in CLASSIFIERS:
        return [(key, tuple(row["shape"])) for key, row in meta(fixture)["state_dict"].items()]
    manifest = json.loads((golden.ROOT / "dense" / fixture / "manifest.json").read_text())
    return [(row["key"], tuple(row["shape"])) for row in manifest]


@pytest.mark.parametrize("fixture", [*CLASSIFIERS, *BACKBONES, "bn_train_backbone_t"])
def test_state_dict_has_upstreams_keys_shapes_and_order(fixture: str) -> None:
    name, options = variant_and_options(fixture)
    with torch.device("meta"):
        model = torch_rmt.build(name, **options)
    assert [(key, tuple(value.shape)) for key, value in model.state_dict().items()] == recorded_shapes(fixture)


PARAMETERS = {  # of the classifier and of the backbone with its extra norms
    "rmt_t": (14_334_216, 12_783_776),
    "rmt_s": (26_967_240, 25_416_800),
    "rmt_b": (54_154_896, 52_604_680),
    "rmt_l": (95_464_864, 93_784_280),
    "rmt_s_star": (27_480_240, None),
    "rmt_b_star": (54_667_896, None),
    "rmt_l_star": (96_105_864, None),
}


def count(name: str, **options: Any) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in torch_rmt.build(name, **options).parameters())


def test_parameter_counts() -> None:
    assert set(torch_rmt.VARIANTS) == set(PARAMETERS)
    for name, (whole, headless) in PARAMETERS.items():
        assert count(name) == whole
        if headless is not None:
            assert count(name, headless=True, extra_norms=True) == headless
    assert count("rmt_s_star", aux_tap="proj") == 27_992_240  # what upstream's log of S* says


def test_constants() -> None:
    for name in ("rmt_t", "rmt_s"):
        state = torch_rmt.build(name).state_dict()
        recorded = {key: value for key, value in expected("relpos").items() if key.startswith(f"{name}/")}
        assert len(recorded) == 8
        for key, constant in recorded.items():
            # Both float32: equal here, but powers may differ in the last bits on other vector units (measured 6e-7).
            assert np.max(np.abs(state[key.removeprefix(f"{name}/")].numpy() / constant - 1)) < 2e-6


def test_initialisation() -> None:
    torch.manual_seed(0)
    model = torch_rmt.build("rmt_b_star", depths=(1, 1, 1, 1))
    for module in model.modules():
        if isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.05)
            assert module.weight.abs().max() > 3 * 0.02  # a cut at two standard deviations is another distribution
            assert not module.bias.any()
        elif isinstance(module, nn.Conv2d):
            bound = (module.weight[0].numel()) ** -0.5
            for value in (module.weight, module.bias):
                assert 0.8 * bound < value.abs().max() <= bound
        elif isinstance(module, nn.LayerNorm | nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert not module.bias.any()
            batch_norm = isinstance(module, nn.BatchNorm2d)
            assert module.eps == (1e-5 if batch_norm else 1e-6)
            assert not batch_norm or module.momentum == 0.1
    gammas = {key: value for key, value in model.state_dict().items() if "gamma" in key}
    assert set(gammas) == {f"layers.{i}.blocks.0.gamma_{j}" for i in (2, 3) for j in (1, 2)}
    for key, gamma in gammas.items():
        assert gamma.shape == (1, 1, 1, 320 if key.startswith("layers.2") else 512)
        assert torch.all(gamma == 1e-6)


def test_drop_path() -> None:
    model = torch_rmt.build("rmt_t")
    rates = [block.drop_rate for stage in model.layers for block in stage.blocks]
    np.testing.assert_allclose(rates, np.linspace(0, 0.1, 14), rtol=1e-6, atol=1e-9)
    torch.manual_seed(0)
    x = torch.ones(4000, 2, 3, 4)
    dropped = torch_rmt.drop_path(x, 0.2, training=True)
    assert torch.all((dropped == 0) | (dropped == 1.25))
    assert torch.all(dropped.flatten(1).std(dim=1) == 0)  # whole samples
    assert dropped.mean().item() == pytest.approx(1, abs=0.03)
    assert torch_rmt.drop_path(x, 0.2, training=False) is x


# --- Classification: inference ---


def run_with_stages(model: torch_rmt.RMT, x: Tensor) -> tuple[Any, list[Tensor]]:
    """The output, the stem and every stage with the downsampling after it."""
    found: list[Tensor] = []
    hooks = [model.patch_embed.register_forward_hook(lambda module, inputs, output: found.append(output))]
    hooks += [
        stage.register_forward_hook(lambda module, inputs, output: found.append(output[1])) for stage in model.layers
    ]
    with torch.no_grad():
        output = model(x)
    for hook in hooks:
        hook.remove()
    return output, found


def inference_errors(model: torch_rmt.RMT, fixture: str, case: str) -> dict[str, float]:
    cases, arrays = meta(fixture)["cases"], expected(fixture)
    logits, stages = run_with_stages(model, images(**cases[case]))
    errors = {"logits": relative_error(logits, arrays[f"{case}/logits"])}
    for i, stage in enumerate(stages):
        info = cases[f"{case}/stage{i}"]
        assert list(stage.shape) == info["full_shape"]
        part = stage[tuple(slice(None, None, stride) for stride in info["stride"])]
        errors[f"stage{i}"] = relative_error(part, arrays[f"{case}/stage{i}"], info["absmax"])
    return errors


@pytest.mark.parametrize("case", ["square", "wide"])
@pytest.mark.parametrize("fixture", CLASSIFIERS)
def test_inference(fixture: str, case: str) -> None:
    errors = inference_errors(model_of(fixture), fixture, case)
    assert len(errors) == 6
    assert max(errors.values()) < OUTPUT_TOLERANCE, errors


def set_layer_norm_eps(model: torch_rmt.RMT, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-5


def set_batch_norm_eps(model: torch_rmt.RMT, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-3


def tanh_gelu(model: torch_rmt.RMT, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = F.gelu
    monkeypatch.setattr(F, "gelu", lambda x, approximate="none": exact(x, approximate="tanh"))


def decay_of_another_stage(model: torch_rmt.RMT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.layers[1].Relpos, "decay", model.layers[2].Relpos.decay[::2])


def phase_from_the_column_alone(model: torch_rmt.RMT, monkeypatch: pytest.MonkeyPatch) -> None:
    flat = torch_rmt.RelPos.forward

    def forward(self: torch_rmt.RelPos, height: int, width: int) -> torch_rmt.Positions:
        sin, cos, decay = flat(self, height, width)
        return torch_rmt.Positions(sin[:1].expand_as(sin), cos[:1].expand_as(cos), decay)

    monkeypatch.setattr(torch_rmt.RelPos, "forward", forward)


def rotary_pairs_of_halves(model: torch_rmt.RMT, monkeypatch: pytest.MonkeyPatch) -> None:
    def rotate(x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
        sin, cos = (torch.cat((part[..., ::2], part[..., ::2]), dim=-1) for part in (sin, cos))
        low, high = x.chunk(2, dim=-1)
        return x * cos + torch.cat((-high, low), dim=-1) * sin

    monkeypatch.setattr(torch_rmt, "rotate", rotate)


def height_before_width(model: torch_rmt.RMT, monkeypatch: pytest.MonkeyPatch) -> None:
    width_first = torch_rmt.decomposed_attention

    def attention(q: Tensor, k: Tensor, v: Tensor, decay: Tensor) -> Tensor:
        q, k, v = (x.transpose(2, 3) for x in (q, k, v))
        return width_first(q, k, v, decay).transpose(2, 3)

    monkeypatch.setattr(torch_rmt, "decomposed_attention", attention)


def full_attention_nowhere(model: torch_rmt.RMT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_rmt, "full_attention", torch_rmt.decomposed_attention)


MISTAKES = (
    set_layer_norm_eps,
    set_batch_norm_eps,
    tanh_gelu,
    decay_of_another_stage,
    phase_from_the_column_alone,
    rotary_pairs_of_halves,
    height_before_width,
    full_attention_nowhere,
)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_inference_comparison_sees(mistake: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("rmt_t")
    mistake(model, monkeypatch)
    errors = inference_errors(model, "rmt_t", "wide")
    assert errors["logits"] > 50 * OUTPUT_TOLERANCE, errors


@pytest.mark.parametrize("weight", [0.0, 0.45])
def test_inference_comparison_sees_the_weight_of_the_aux_head(weight: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_rmt, "AUX_LOGITS_WEIGHT", weight)
    assert inference_errors(model_of("rmt_s_star"), "rmt_s_star", "wide")["logits"] > 5 * OUTPUT_TOLERANCE


def test_aux_taps() -> None:
    torch.manual_seed(0)
    x, predictions = torch.randn(2, 3, 64, 64), []
    for tap in torch_rmt.AUX_TAPS[1:]:
        model = torch_rmt.build("rmt_s_star", depths=(1, 1, 1, 1), aux_tap=tap, num_classes=7)
        state = predictions[0][0] if predictions else model.state_dict()
        model.load_state_dict(state)
        with torch.no_grad():
            predictions.append((state, model.eval()(x)))
    assert not any(torch.allclose(predictions[i][1], predictions[j][1]) for i, j in ((0, 1), (0, 2), (1, 2)))


# --- Classification: training ---


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


# --- Backbones of detectors and segmentors ---


def dense_error(fixture: str, name: str, output: Tensor) -> float:
    info = meta(fixture)["outputs"][name]
    assert list(output.shape) == info["shape"]
    part = golden.subsample(output.detach().contiguous().numpy(), info["stride"])
    return relative_error(part, expected(fixture)[name], info["absmax"])


def backbone_errors(model: torch_rmt.RMT, fixture: str) -> dict[str, float]:
    info, errors = meta(fixture), {}
    cases = {"out": images(info["seed"], info["input_shape"]), "odd_out": images(**info["odd_input"])}
    with torch.no_grad():
        for case, x in cases.items():
            errors |= {f"{case}{i}": dense_error(fixture, f"{case}{i}", output) for i, output in enumerate(model(x))}
    return errors


@pytest.mark.parametrize("fixture", BACKBONES)
def test_backbone(fixture: str) -> None:
    errors = backbone_errors(model_of(fixture), fixture)
    assert len(errors) == 8
    x = images(meta(fixture)["seed"], meta(fixture)["input_shape"])
    bare = model_of(fixture)
    bare.extra_norms = None
    with torch.no_grad():
        errors["stem"] = dense_error(fixture, "patch_embed_nhwc", bare.patch_embed(x))
        for i, output in enumerate(bare(x)):
            name = f"stage{i}_before_extra_norm_nhwc"
            errors[name] = dense_error(fixture, name, output.permute(0, 2, 3, 1))
    assert max(errors.values()) < BACKBONE_TOLERANCE, errors


@pytest.mark.parametrize("fixture", SENSITIVE_BACKBONES)
def test_backbone_comparison_sees_five_per_cent_of_the_last_decay(fixture: str) -> None:
    model = model_of(fixture)
    model.layers[3].Relpos.decay *= 1.05
    errors = backbone_errors(model, fixture)
    wrong = {name for name, error in errors.items() if error > 10 * BACKBONE_TOLERANCE}
    assert wrong == {"out3", "odd_out3"}


def deviations(model: torch_rmt.RMT, fixture: str) -> dict[str, tuple[float, float]]:
    """How far upstream's float32 maps are from a float64 model here, and were from upstream's own in float64."""
    info, found = meta(fixture), {}
    with torch.no_grad():
        maps = model.double()(images(info["seed"], info["input_shape"]).double())
    for i, output in enumerate(maps):
        name = f"out{i}"
        recorded = info["outputs"][name]["max_abs_dev_fp32_vs_fp64"]
        found[name] = dense_error(fixture, name, output) * info["outputs"][name]["absmax"], recorded
    return found


@pytest.mark.parametrize("fixture", SENSITIVE_BACKBONES)
def test_float64_is_as_far_from_upstreams_float32_as_upstreams_float64(fixture: str) -> None:
    for name, (ours, recorded) in deviations(model_of(fixture), fixture).items():
        if meta(fixture)["outputs"][name]["stride"] == 1:
            assert ours == pytest.approx(recorded, rel=DEVIATION_TOLERANCE), name
        else:  # the fixture holds a part of the output only
            assert 0.5 * recorded < ours < (1 + DEVIATION_TOLERANCE) * recorded, name


def test_float64_comparison_sees_the_eps_of_the_extra_norms() -> None:
    """The largest errors of float32 do not: the maps' variances are far above 1e-5."""
    fixture = "det_backbone_t_posgain01"
    model = model_of(fixture)
    for norm in model.extra_norms:
        norm.eps = 1e-6
    found = deviations(model, fixture)
    for name in ("out2", "out3"):
        ours, recorded = found[name]
        assert abs(ours / recorded - 1) > 5 * DEVIATION_TOLERANCE


def test_backbone_in_training_mode() -> None:
    fixture = "bn_train_backbone_t"
    info, model = meta(fixture), model_of(fixture).train()
    with torch.no_grad():
        maps = model(images(info["seed"], info["input_shape"]))
    outputs = {f"out{i}": output for i, output in enumerate(maps)}
    outputs |= {f"{key}_after": value for key, value in model.state_dict().items() if ".running_" in key}
    assert set(outputs) == set(info["outputs"])
    errors = {name: dense_error(fixture, name, output) for name, output in outputs.items()}
    assert max(errors.values()) < BACKBONE_TOLERANCE, errors


# --- Parts, types and sizes ---


def test_parts_run_alone_on_their_share_of_the_weights() -> None:
    model = model_of("rmt_t")
    state = model.state_dict()

    def part(module: nn.Module, prefix: str) -> nn.Module:
        module.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
        return module.eval()

    torch.manual_seed(0)
    x = torch.randn(2, 5, 7, 256)
    block = model.layers[2].blocks[1]
    positions = torch_rmt.RelPos(256, 8, start=2, span=6)(5, 7)
    prefix = "layers.2.blocks.1."
    with torch.no_grad():
        retention = part(torch_rmt.Retention(256, 8, decomposed=False), f"{prefix}retention.")
        assert torch.equal(retention(x, positions), block.retention(x, positions))
        assert torch.equal(part(torch_rmt.FeedForward(256, 768), f"{prefix}ffn.")(x), block.ffn(x))
        whole = part(torch_rmt.Block(256, 8, 3, decomposed=False), prefix)
        assert torch.equal(whole(x, positions), block(x, positions))
        image = torch.randn(2, 3, 33, 47)
        stem = part(torch_rmt.PatchEmbed(64), "patch_embed.")
        assert torch.equal(stem(image), model.patch_embed(image))


def test_attention_against_a_loop_over_positions() -> None:
    rng = np.random.default_rng(0)
    height, width = 3, 4
    q, k, v = rng.standard_normal((3, 1, 2, height, width, 6))
    decay = np.log([0.7, 0.9])

    def softmax_mean(logits: list[float], values: list[np.ndarray]) -> np.ndarray:
        shares = np.exp(logits) / np.sum(np.exp(logits))
        return np.sum([share * value for share, value in zip(shares, values, strict=True)], axis=0)

    full, rows, both = np.empty_like(v), np.empty_like(v), np.empty_like(v)
    grid = [(i, j) for i in range(height) for j in range(width)]
    for head in range(2):
        query, key, value = q[0, head], k[0, head], v[0, head]
        for i, j in grid:
            logits = [query[i, j] @ key[a, b] + decay[head] * (abs(i - a) + abs(j - b)) for a, b in grid]
            full[0, head, i, j] = softmax_mean(logits, [value[a, b] for a, b in grid])
            logits = [query[i, j] @ key[i, b] + decay[head] * abs(j - b) for b in range(width)]
            rows[0, head, i, j] = softmax_mean(logits, list(value[i]))
        for i, j in grid:
            logits = [query[i, j] @ key[a, j] + decay[head] * abs(i - a) for a in range(height)]
            both[0, head, i, j] = softmax_mean(logits, list(rows[0, head, :, j]))
    inputs = [torch.from_numpy(array) for array in (q, k, v, decay)]
    np.testing.assert_allclose(torch_rmt.full_attention(*inputs).numpy(), full, rtol=1e-12)
    np.testing.assert_allclose(torch_rmt.decomposed_attention(*inputs).numpy(), both, rtol=1e-12)


def test_double_precision() -> None:
    single, double = model_of("rmt_t"), model_of("rmt_t").double()
    x = images(102, [1, 3, 64, 96])
    with torch.no_grad():
        exact = double(x.double())
        error = relative_error(single(x).double(), exact.numpy())
    assert exact.dtype == torch.float64
    assert 1e-9 < error < OUTPUT_TOLERANCE
    assert all(p.dtype == torch.float64 for p in double.layers[0].Relpos(4, 4))


def test_bfloat16() -> None:
    single, half = model_of("rmt_t"), model_of("rmt_t").to(torch.bfloat16)
    for stage, rounded in zip(single.layers, half.layers, strict=True):
        for constant, kept in zip(stage.Relpos(20, 30), rounded.Relpos(20, 30), strict=True):
            assert kept.dtype == torch.float32
            assert torch.equal(constant, kept)
    x = images(102, [1, 3, 64, 96])
    with torch.no_grad():
        ours, reference = half(x.to(torch.bfloat16)), single(x)
    assert ours.dtype == torch.bfloat16
    # Eight bits of mantissa through fourteen blocks; measured 0.011.
    assert relative_error(ours.float(), reference.numpy()) < 0.05


@pytest.mark.parametrize("size", [(32, 32), (33, 65), (47, 100)])
def test_sizes_are_halved_rounding_up(size: tuple[int, int]) -> None:
    model = torch_rmt.build("rmt_t", headless=True, depths=(1, 1, 1, 1)).eval()
    with torch.no_grad():
        maps = model(torch.zeros(1, 3, *size))
    for i, output in enumerate(maps):
        expected_size = tuple(-(-side // 2 ** (i + 2)) for side in size)
        assert output.shape == (1, (64, 128, 256, 512)[i], *expected_size)


def test_impossible_options() -> None:
    for message, name, options in (
        ("no variant 'rmt_x'", "rmt_x", {}),
        ("aux_tap", "rmt_s_star", {"aux_tap": "head"}),
        ("no aux_head", "rmt_s_star", {"headless": True}),
        ("extra_norms", "rmt_s", {"extra_norms": True}),
    ):
        with pytest.raises(ValueError, match=message), torch.device("meta"):
            torch_rmt.build(name, **options)


# --- Independence ---

SOURCE = pathlib.Path(torch_rmt.__file__)


def imported_packages(source: str) -> set[str]:
    packages = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            packages |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            packages.add("." if node.level else node.module.split(".")[0])
    return packages


def test_imports_are_torch_numpy_and_the_standard_library() -> None:
    allowed = {"torch", "numpy"} | set(sys.stdlib_module_names)
    assert imported_packages(SOURCE.read_text()) <= allowed
    assert not imported_packages("def f():\n    from rmt_jax.models import x") <= allowed
    assert not imported_packages("from . import parity") <= allowed
    assert "import_module" not in SOURCE.read_text()


def test_loads_by_path_without_side_effects() -> None:
    before = torch.get_num_threads(), torch.get_default_dtype(), torch.get_rng_state()
    spec = importlib.util.spec_from_file_location("reference", SOURCE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    after = torch.get_num_threads(), torch.get_default_dtype(), torch.get_rng_state()
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])
    assert set(module.VARIANTS) == set(torch_rmt.VARIANTS)
