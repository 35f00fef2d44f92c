"""Models and the recorded backbones at full size, through real files and the command, and back."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

from tests import conversion
from tests.compilation import QUICK_ENVIRONMENT

REPOSITORY = pathlib.Path(__file__).parent.parent


# All seven, and gradients of more than RMT-T's, are in docs/conversion.md: they take minutes. Here L with what a star
# adds stands for the others, which are it with smaller numbers; tests/test_torch_parity.py has small ones of every
# kind.
LEFT_OUT = ("rmt_s", "rmt_b", "rmt_l", "rmt_s_star", "rmt_b_star")
TESTED = [
    section
    for section in conversion.SECTIONS
    if section == "rmt_t_gradients" or ("gradients" not in section and section not in LEFT_OUT)
]


@pytest.mark.slow
def test_models_and_backbones() -> None:
    """In a process of its own, because it takes gigabytes."""
    environment = os.environ | QUICK_ENVIRONMENT | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "tests.conversion", *TESTED]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = re.findall(r"^\| (\w+) \| (.+?) \| (\d\S+) \| (\d\S+) \|$", done.stdout, re.MULTILINE)
    cases = {(section, case.split(":")[0]) for section, case, _, _ in rows}
    for name in {*conversion.MODELS, *conversion.BACKBONES} - set(LEFT_OUT):
        assert (name, "logits" if name in conversion.MODELS else "four maps, 128x160") in cases
        assert (name, "way back") in cases
    assert ("rmt_t", "332 whole gradients") in cases
    assert all(float(error) <= float(tolerance) for _, _, error, tolerance in rows)


@pytest.mark.slow
def test_a_wrong_layout_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One kernel turned by a transposition that keeps its shape."""
    original = conversion.load_pretrained

    def spoiled(*words: object, **options: object) -> object:
        model = original(*words, **options)
        kernel = model.layers[0].blocks[0].pos.kernel
        kernel[...] = kernel[...].swapaxes(0, 1)
        return model

    monkeypatch.setattr(conversion, "load_pretrained", spoiled)
    rows = conversion.rows("det_backbone_t_posgain01")
    assert [row.case for row in rows if row.error > row.tolerance] == ["four maps, 128x160", "four maps, 97x131"]
