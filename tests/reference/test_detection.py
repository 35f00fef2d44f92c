"""Our detectors against the outputs, losses and gradients recorded from upstream."""

import pytest

from tests import parity_detection as parity


@pytest.mark.parametrize(
    "fixture",
    [
        pytest.param(fixture, marks=[pytest.mark.slow] * (fixture != "retinanet_t"))
        for fixture in parity.SECTIONS
        if fixture not in parity.LOSSES
    ],
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
