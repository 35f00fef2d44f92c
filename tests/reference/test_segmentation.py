"""Our segmentors, and a backbone in training mode, against the outputs recorded from upstream."""

import pytest

from tests import parity_segmentation as parity

FIXTURES = ("fpn_t", "fpn_s", "upernet_s", "bn_train_backbone_t")


@pytest.mark.parametrize(
    "fixture", [name if name == "fpn_t" else pytest.param(name, marks=pytest.mark.slow) for name in FIXTURES]
)
def test_outputs(fixture: str) -> None:
    rows = list(parity.SECTIONS[fixture]())
    assert len(rows) == len(parity.meta(fixture)["outputs"])
    assert [row for row in rows if not row.error <= row.tolerance] == []
