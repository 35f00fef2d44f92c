"""The model is told by keys and shapes."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from rmt_jax.convert.names import relpos_constants
from rmt_jax.convert.recognize import recognize
from rmt_jax.models import RUN_TIME_FIELDS, list_models, variant, variants
from tests import torch_rmt

StateDict = dict[str, Any]


def shapes(name: str, **changes: Any) -> StateDict:
    """An upstream state dict of full size that takes no memory, but for its constants."""
    config = variant(name, **changes)
    headless = config.extra_norms or changes.get("headless", False)
    fields = {name: value for name, value in vars(config).items() if name not in RUN_TIME_FIELDS}
    with torch_rmt.torch.device("meta"):
        model = torch_rmt.RMT(**fields, headless=headless)
    found = {key: np.broadcast_to(np.float32(0), tuple(tensor.shape)) for key, tensor in model.state_dict().items()}
    return found | relpos_constants(config)


@pytest.mark.parametrize("name", list_models())
def test_every_model(name: str) -> None:
    found = recognize(shapes(name, num_classes=37))
    assert (found.name, found.task, found.notes) == (name, "classification", ())
    assert found.config == variant(name, num_classes=37)


@pytest.mark.parametrize("name", ["rmt_t", "rmt_s", "rmt_b", "rmt_l"])
def test_every_backbone_of_a_detector(name: str) -> None:
    found = recognize(shapes(name, extra_norms=True))
    assert (found.name, found.task) == (name, "backbone")
    assert found.config == variant(name, extra_norms=True)


@pytest.mark.parametrize("name", list_models())
def test_constants_are_not_needed(name: str) -> None:
    learned = {key: value for key, value in shapes(name).items() if "Relpos" not in key}
    assert recognize(learned).name == name


@pytest.mark.parametrize("name", ["rmt_s_star", "rmt_l_star"])
def test_an_auxiliary_head_as_wide_as_the_projection(name: str) -> None:
    wide = shapes(name, aux_tap="proj")
    assert wide["aux_head.weight"].shape == (1000, 1024)
    found = recognize(wide)
    assert (found.name, found.config.aux_tap) == (name, "activation")
    assert "aux tap unverified" in found.notes[0]
    assert "a guess: --aux-tap changes it" in found.notes[0]
    given = recognize(wide, aux_tap="norm")
    assert given.config.aux_tap == "norm"
    assert "aux tap unverified" in given.notes[0]


def test_a_tap_that_the_width_rules_out() -> None:
    with pytest.raises(ValueError, match=r"takes 512 channels, which does not go with aux_tap='proj'"):
        recognize(shapes("rmt_s_star"), aux_tap="proj")
    with pytest.raises(ValueError, match=r"takes 1024 channels, which does not go with aux_tap='features'"):
        recognize(shapes("rmt_s_star", aux_tap="proj"), aux_tap="features")
    with pytest.raises(ValueError, match="these weights have none"):
        recognize(shapes("rmt_s"), aux_tap="proj")
    odd = shapes("rmt_s_star")
    odd["aux_head.weight"] = np.zeros((1000, 700), np.float32)
    with pytest.raises(ValueError, match="takes 700 channels: the last stage has 512, the projection 1024"):
        recognize(odd)


def test_widths_that_leave_the_tap_open() -> None:
    same = shapes("rmt_s_star", proj_dim=512)
    with pytest.raises(ValueError, match="ambiguous: the auxiliary head takes 512 channels, and so many have both"):
        recognize(same)
    assert recognize(same, aux_tap="features").config == variant("rmt_s_star", proj_dim=512)
    assert recognize(same, aux_tap="norm").config == variant("rmt_s_star", proj_dim=512, aux_tap="norm")


def test_the_name_can_be_given_and_the_numbers_are_still_read() -> None:
    found = recognize(shapes("rmt_s", num_classes=5, proj_dim=64), model="rmt_s")
    assert found.config == variant("rmt_s", num_classes=5, proj_dim=64)
    assert recognize(shapes("rmt_s"), model="rmt_l").name == "rmt_l"  # the conversion says what does not fit


def test_an_unknown_model_is_compared_with_the_nearest() -> None:
    message = r"of no known model\. Nearest is rmt_s, which differs: depths \(3, 4, 17, 4\), there \(3, 4, 18, 4\)\."
    with pytest.raises(ValueError, match=message):
        recognize(shapes("rmt_s", depths=(3, 4, 17, 4)))
    with pytest.raises(ValueError, match=r"Nearest is rmt_l, .*num_heads \(7, 7, 14, 10\), there \(7, 7, 14, 20\)"):
        recognize(shapes("rmt_l", num_heads=(7, 7, 14, 10)))
    with pytest.raises(ValueError, match=r"layer_scale \(False, False, False, False\)"):
        recognize(shapes("rmt_b", layer_scale=(None, None, None, None)))


def test_head_and_detector_norms_together_are_ambiguous() -> None:
    with pytest.raises(
        ValueError, match=r"ambiguous: they have a classifier's head \(head\.bias, \d+ entries\) and the"
    ):
        recognize(shapes("rmt_t") | shapes("rmt_t", extra_norms=True))


def test_twins_are_told_apart_by_their_constants(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two models of the same shapes: only decays differ."""
    twin = dataclasses.replace(variants.VARIANTS["rmt_s"], decay_spans=(5, 5, 7, 7))
    monkeypatch.setitem(variants.VARIANTS, "rmt_s2", twin)
    assert recognize(shapes("rmt_s2")).name == "rmt_s2"
    assert recognize(shapes("rmt_s")).name == "rmt_s"
    learned = {key: value for key, value in shapes("rmt_s").items() if "Relpos" not in key}
    with pytest.raises(ValueError, match=r"ambiguous: their shapes are those of rmt_s and rmt_s2\. Choose one"):
        recognize(learned)
    assert recognize(learned, model="rmt_s2").config.decay_spans == (5, 5, 7, 7)
