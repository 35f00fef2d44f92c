"""Names, shapes, sizes, constants and initialisation of the PyTorch reference."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests import torch_rmt
from tests.golden import golden
from tests.reference.recorded import BACKBONES, CLASSIFIERS, expected, meta, variant_and_options


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
