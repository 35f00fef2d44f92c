"""The array functions of detection against upstream's recorded results."""

import pytest

from tests import parity_boxes as parity
from tests import parity_targets


@pytest.mark.parametrize("section", parity.SECTIONS)
def test_recorded_results(section: str) -> None:
    rows = list(parity.SECTIONS[section]())
    assert rows
    assert [row for row in rows if not row.error <= row.tolerance] == []


def test_ties_when_compiled_as_for_users() -> None:
    """Optimised, where a product and a sum become one instruction unless they are kept apart."""
    (row,) = parity_targets.tie_rows(xla_backend_optimization_level=3)
    assert row.error == 0
