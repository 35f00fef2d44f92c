"""COCO's recipes against what upstream's optimisers were recorded with."""

import json
import pathlib
import re
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

OPTIM = pathlib.Path(golden.__file__).parent / "dense/optim"
SUMMARY = json.loads((OPTIM / "det_summary.json").read_text())
HEADS = {"retinanet": "retinanet", "maskrcnn": "mask_rcnn", "casrcnn": "cascade_mask_rcnn"}
PICTURES = 117_266  # of COCO's training split, as upstream filters it


def recipe(arguments: str, *words: str) -> Config:
    return parse(load_config(f"configs/coco.py:{arguments}", words))


def arguments_of(name: str) -> str:
    """Of maskrcnn_s_1x and so on; upstream's m is the paper's B."""
    head, size, schedule = name.split("_")
    return f"rmt_{size.replace('m', 'b')},head={HEADS[head]},schedule={schedule}"


@pytest.mark.parametrize("name", SUMMARY)
def test_learning_rates_are_the_recorded_ones(name: str) -> None:
    config, recorded = recipe(arguments_of(name)), SUMMARY[name]
    assert config.epochs == recorded["runner"]["max_epochs"]
    assert config.batch_size == 8 * recorded["samples_per_gpu"]
    assert config.detection.normalizer == {1: "picture", 2: "pair"}[recorded["samples_per_gpu"]]
    optimizer = config.optimizer
    assert (optimizer.beta1, optimizer.beta2, optimizer.epsilon) == (*recorded["betas"], recorded["eps"])
    assert (optimizer.weight_decay, optimizer.clip_norm) == (recorded["weight_decay"], None)
    steps = -(-PICTURES // config.batch_size)
    rates = learning_rates(config.schedule, config.peak_learning_rate, config.total_steps(steps), steps)
    for key, rate in recorded["lr_values"].items():
        epoch, step = map(int, re.fullmatch(r"epoch(\d+)_iter(\d+)", key).groups())  # type: ignore[union-attr]
        assert step // steps == epoch
        np.testing.assert_allclose(rates.at(step), rate, rtol=1e-9, err_msg=key)


@pytest.mark.parametrize("name", ["retinanet_t_1x", "maskrcnn_s_1x", "maskrcnn_m_1x", "casrcnn_s_3x", "casrcnn_m_3x"])
def test_what_decays_is_what_was_recorded(name: str) -> None:
    config = recipe(arguments_of(name))
    groups = json.loads((OPTIM / f"{name}.param_groups.json").read_text())
    model, head = config.model.name, config.detection.head
    detector: Any = abstract_model(lambda rngs: create_model(model, task="detection", head=head, rngs=rngs))
    _, params, _ = split_model(detector)
    decays: dict[str, Any] = dict(flat_paths(select(params, DECAY_RULES[config.optimizer.decay])))
    found = {torch_key(path, "detection"): bool(value) for path, value in decays.items()}
    assert found == dict.fromkeys(groups["decay"], True) | dict.fromkeys(groups["no_decay"], False)


def test_three_times_the_epochs_have_several_scales() -> None:
    data = recipe("rmt_s,head=mask_rcnn,schedule=3x").data.detection
    assert [shortest for _, shortest in data.scales] == [480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800]
    assert data.crop_scales == ((1333, 400), (1333, 500), (1333, 600))
    assert data.flip_first
    assert not recipe("rmt_s,head=mask_rcnn,schedule=1x").data.detection.crop_scales


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("rmt_t,head=cascade_mask_rcnn,schedule=3x", "none of the published recipes, which are: head=retinanet"),
        ("rmt_s,head=mask_rcnn,schedule=2x", "none of the published recipes"),
        ("rmt_s,neck=fpn", "expected MODEL,head=HEAD,schedule=SCHEDULE"),
    ],
)
def test_other_recipes_say_what_there_is(arguments: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recipe(arguments)


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'retinanet' learns no masks: set data.detection.masks=False"):
        recipe("rmt_s,head=mask_rcnn,schedule=1x", "--config.detection.head=retinanet")
    with pytest.raises(ValueError, match=r"batch_size=12 in grad_accum_steps=4 parts cannot be cut into pairs"):
        recipe("rmt_s,head=mask_rcnn,schedule=1x", "--config.batch_size=12", "--config.grad_accum_steps=4")
    with pytest.raises(ValueError, match="erasing is for classification"):
        recipe("rmt_s", "--config.erasing=0.1")
