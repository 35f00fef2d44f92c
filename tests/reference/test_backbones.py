"""Backbones of detectors and segmentors: the four maps of the PyTorch reference."""

import pytest
import torch
from torch import Tensor

from tests import torch_rmt
from tests.golden import golden
from tests.reference.recorded import (
    BACKBONE_TOLERANCE,
    BACKBONES,
    DEVIATION_TOLERANCE,
    SENSITIVE_BACKBONES,
    expected,
    images,
    meta,
    model_of,
    relative_error,
)


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
    """How far upstream's float32 maps are from a float64 model here, and were from upstream's own in float64.

    With the constants as upstream had them, in float32: processors take logarithms that differ in the last bit.
    """
    info, found = meta(fixture), {}
    constants = golden.expected("relpos")
    for i, stage in enumerate(model.layers):
        stage.Relpos.decay.copy_(torch.from_numpy(constants[f"rmt_{fixture.split('_')[2]}/layers.{i}.Relpos.decay"]))
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
