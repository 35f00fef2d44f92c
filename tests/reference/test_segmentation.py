"""Our segmentors, and a backbone in training mode, against the outputs recorded from upstream."""

import itertools

import pytest

from tests import parity_segmentation as parity


def test_a_small_segmentor_at_an_odd_size() -> None:
    rows = list(itertools.takewhile(lambda row: row.case.startswith("odd_"), parity.SECTIONS["fpn_t"]()))
    assert len(rows) == 9
    assert [row for row in rows if not row.error <= row.tolerance] == []


@pytest.mark.slow
@pytest.mark.parametrize("fixture", ["fpn_t", "fpn_s", "upernet_s", "bn_train_backbone_t"])
def test_outputs(fixture: str) -> None:
    rows = list(parity.SECTIONS[fixture]())
    assert len(rows) == len(parity.meta(fixture)["outputs"])
    assert [row for row in rows if not row.error <= row.tolerance] == []
