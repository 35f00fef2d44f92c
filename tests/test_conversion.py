"""All seven models and the recorded backbones at full size, through real files and the command, and back."""

import pytest

from tests import conversion

FAST = {"rmt_t", "det_backbone_t_posgain01"}


@pytest.mark.parametrize(
    "section",
    [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in conversion.SECTIONS],
)
def test_conversion(section: str) -> None:
    rows = conversion.rows(section)
    assert rows
    assert [row for row in rows if not row.error <= row.tolerance] == []


@pytest.mark.parametrize(("layer", "index"), [("pos", 0), ("out_proj", 3)])
def test_a_wrong_layout_is_noticed(layer: str, index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One transform off by a transposition that keeps the shape."""
    original = conversion.load_pretrained

    def spoiled(*words: object, **options: object) -> object:
        model = original(*words, **options)
        block = model.layers[index].blocks[0]
        kernel = (block.pos if layer == "pos" else block.retention.out_proj).kernel
        kernel[...] = kernel[...].swapaxes(0, 1)
        return model

    monkeypatch.setattr(conversion, "load_pretrained", spoiled)
    rows = conversion.rows("det_backbone_t_posgain01")
    assert any(row.error > row.tolerance for row in rows)
