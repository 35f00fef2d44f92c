"""Outputs of the PyTorch reference in evaluation mode; each kind of mistake is noticed."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests import torch_rmt
from tests.reference.recorded import CLASSIFIERS, OUTPUT_TOLERANCE, expected, images, meta, model_of, relative_error


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
