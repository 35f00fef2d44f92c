"""Our detectors against the outputs recorded from upstream."""

import pytest

from tests import parity_detection as parity


@pytest.mark.parametrize(
    "fixture",
    [pytest.param(fixture, marks=[pytest.mark.slow] * (fixture != "retinanet_t")) for fixture in parity.SECTIONS],
)
def test_outputs(fixture: str) -> None:
    rows = list(parity.SECTIONS[fixture]())
    assert len(rows) == len(parity.meta(fixture)["outputs"])
    assert [row for row in rows if not row.error <= row.tolerance] == []
