"""Our detectors against the outputs, losses and gradients recorded from upstream."""

import pytest

from tests import parity_detection as parity

# Backbones alone are held to theirs by test_conversion.py, after `rmt convert`.
DETECTORS = [name for name in parity.SECTIONS if name not in parity.LOSSES and "backbone" not in name]


@pytest.mark.parametrize(
    "fixture",
    [pytest.param(name, marks=[pytest.mark.slow] * (name != "retinanet_t")) for name in DETECTORS],
)
def test_outputs(fixture: str) -> None:
    rows = list(parity.SECTIONS[fixture]())
    assert len(rows) == len(parity.meta(fixture)["outputs"])
    assert [row for row in rows if not row.error <= row.tolerance] == []


@pytest.mark.slow
@pytest.mark.parametrize("fixture", parity.LOSSES)
def test_losses_and_gradients(fixture: str) -> None:
    rows = list(parity.SECTIONS[fixture]())
    assert len(rows) == {"loss_retinanet_t": 5, "loss_maskrcnn_s": 8}[fixture]
    assert [row for row in rows if not row.error <= row.tolerance] == []
