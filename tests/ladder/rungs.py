"""The rungs of the parity ladder, from the bottom to the top."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from hypothesis import strategies as st

from tests.ladder.case import Case, Row, batches, parts, pictures
from tests.ladder.functions import constants, decomposed, depthwise, full, gelu, rotary
from tests.ladder.parts import backbone, batch_norm, block, classifier, ffn, retention, stage, stem
from tests.ladder.training import training


class Rung(NamedTuple):
    """What is compared, and the cases that hypothesis draws for it."""

    rows: Callable[[Case], Iterator[Row]]
    cases: st.SearchStrategy[Case]


# From the bottom to the top.
RUNGS: dict[str, Rung] = {
    rows.__name__: Rung(rows, cases)
    for cases, functions in (
        (parts(), (constants, gelu, depthwise, rotary, decomposed, full, batch_norm, retention, ffn, block, stage)),
        (pictures(), (stem, classifier)),
        (pictures(headless=True), (backbone,)),
        (batches(), (training,)),
    )
    for rows in functions
}
