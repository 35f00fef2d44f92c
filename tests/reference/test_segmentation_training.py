"""Losses and gradients of our segmentors against those recorded from upstream."""

import pytest

from tests import parity_segmentation as parity


@pytest.mark.slow
@pytest.mark.parametrize("fixture", ["loss_fpn_t", "loss_upernet_s"])
def test_losses_and_gradients(fixture: str) -> None:
    rows = list(parity.SECTIONS[fixture]())
    assert len(rows) == len(parity.meta(fixture)["outputs"]) + 2
    assert [row for row in rows if not row.error <= row.tolerance] == []
