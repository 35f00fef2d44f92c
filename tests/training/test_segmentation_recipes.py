"""ADE20K's recipes against what upstream's optimisers were recorded with."""

import json
import pathlib
from typing import Any

import numpy as np
import pytest

from rmt_jax.convert.names import torch_key
from rmt_jax.models import abstract_model, create_model
from rmt_jax.models.arrays import flat_paths
from rmt_jax.training.command_line import load_config
from rmt_jax.training.config import Config, parse
from rmt_jax.training.optimizer import DECAY_RULES, select
from rmt_jax.training.schedule import learning_rates
from rmt_jax.training.state import split_model
from tests.golden import golden

GOLDEN = pathlib.Path(golden.__file__).parent
SUMMARY = json.loads((GOLDEN / "dense/optim/seg_summary.json").read_text())
RECIPES = {"RMT_FPN_t_1x": "rmt_t,head=semantic_fpn", "RMT_Uper_s_2x": "rmt_s", "RMT_Uper_m_2x": "rmt_b,head=upernet"}


def recipe(arguments: str, *words: str) -> Config:
    return parse(load_config(f"configs/ade20k.py:{arguments}", words))


@pytest.mark.parametrize(("name", "arguments"), RECIPES.items())
def test_learning_rates_are_the_recorded_ones(name: str, arguments: str) -> None:
    config, recorded = recipe(arguments), SUMMARY[name]
    assert config.steps == recorded["runner"]["max_iters"]
    assert config.eval_every_steps == recorded["evaluation"]["interval"]
    optimizer = config.optimizer
    assert (optimizer.beta1, optimizer.beta2, optimizer.epsilon) == (*recorded["betas"], recorded["eps"])
    assert optimizer.weight_decay == recorded["weight_decay"]
    rates = learning_rates(config.schedule, config.peak_learning_rate, config.total_steps(1263), 1263)
    for step, rate in recorded["lr_values"].items():
        np.testing.assert_allclose(rates.at(int(step.removeprefix("iter"))), rate, rtol=1e-9, err_msg=step)


@pytest.mark.parametrize(("name", "arguments"), RECIPES.items())
def test_what_decays_is_what_was_recorded(name: str, arguments: str) -> None:
    config = recipe(arguments)
    groups = json.loads((GOLDEN / f"dense/optim/{name}.param_groups.json").read_text())
    head, model = config.segmentation.head, config.model.name
    segmentor = abstract_model(
        lambda rngs: create_model(model, task="segmentation", head=head, num_classes=150, rngs=rngs)
    )
    _, params, _ = split_model(segmentor)
    decays: dict[str, Any] = dict(flat_paths(select(params, DECAY_RULES[config.optimizer.decay])))
    found = {torch_key(path, "segmentation"): bool(value) for path, value in decays.items()}
    assert found == dict.fromkeys(groups["decay"], True) | dict.fromkeys(groups["no_decay"], False)


def test_settings_of_classification_are_refused() -> None:
    with pytest.raises(ValueError, match="mix is for classification and would not be read by segmentation"):
        recipe("rmt_s", "--config.mix.mixup=0.8")
    with pytest.raises(ValueError, match="erasing is for classification"):
        recipe("rmt_s", "--config.erasing=0.1")


@pytest.mark.parametrize("arguments", ["rmt_s,head=fcn", "rmt_s,neck=fpn"])
def test_unknown_recipes_say_what_is_expected(arguments: str) -> None:
    with pytest.raises(ValueError, match="expected MODEL,head=HEAD with a head of semantic_fpn or upernet"):
        recipe(arguments)


def test_several_scales_from_the_command_line() -> None:
    config = recipe("rmt_s", "--config.data.segmentation.eval_ratios=(0.75, 1, 1.25)")
    assert config.data.segmentation.eval_ratios == (0.75, 1.0, 1.25)
    with pytest.raises(ValueError, match=r"eval_ratios must be tuple\[float, ...\], got '0.5'"):
        recipe("rmt_s", "--config.data.segmentation.eval_ratios=0.5")
