"""`data.detection`: values that cannot be meant are refused."""

from typing import Any

import pytest

from rmt_jax.data import DetectionDataConfig


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scales": ()}, r"data\.detection\.scales is empty"),
        ({"scales": ((800, 1333),)}, r"scales has \(800, 1333\): expected \(longest, shortest\)"),
        ({"canvas": (1333, 800)}, r"canvas=\(1333, 800\): expected multiples of 32"),
        ({"canvas": (1344, 768)}, r"scales has \(1333, 800\), which does not fit .* set canvas=\(1344, 800\)"),
        ({"eval_scale": (1400, 800), "eval_canvases": True}, r"eval_scale has .* set canvas=\(1408, 800\)"),
        ({"crop_sides": (600, 384)}, r"crop_sides=\(600, 384\): expected \(smallest, largest\)"),
        ({"flip": 1.5}, "flip=1.5: expected a probability"),
        ({"max_boxes": 0}, "max_boxes=0: expected 1 or more"),
        ({"annotations": "{folder}.json"}, r"annotations='\{folder\}\.json': expected a path in which \{split\}"),
    ],
)
def test_impossible_configurations(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DetectionDataConfig(**values)
