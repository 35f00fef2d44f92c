"""The command `rmt`."""

import gc
import signal
import time

import pytest

from rmt_jax import __version__
from rmt_jax.cli import main


def test_models_prints_every_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--image-size", "384"]) == 0
    out = capsys.readouterr().out
    assert "26,967,240" in out
    assert "14.642 G" in out
    assert "rmt_l_star" in out


def test_models_prints_every_segmentor(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--task", "segmentation"]) == 0
    out = capsys.readouterr().out
    assert "FLOPs @512" in out
    for row in ("rmt_t semantic_fpn 17,034,038 33.632 G", "rmt_l upernet 125,558,276"):
        assert row in " ".join(out.split())
    assert "_star" not in out
    assert main(["models", "--image-size", "0"]) == 2


@pytest.mark.slow
def test_models_prints_every_detector(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--task", "detection"]) == 0
    out = capsys.readouterr().out
    assert "FLOPs @1280x800" in out
    for row in ("rmt_t retinanet 23,017,364 199.123 G", "rmt_b cascade_mask_rcnn 110,619,578 850.793 G"):
        assert row in " ".join(out.split())
    assert "_star" not in out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"rmt_jax {__version__}\n"


@pytest.mark.parametrize("words", [[], ["train"], ["convert", "x.pth", "y", "--weights=best"]])
def test_words_that_are_not_understood(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(words)
    assert "error:" in capsys.readouterr().err


def test_values_that_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--image-size", "16"]) == 2
    assert capsys.readouterr().err == "error: --image-size 16: the models take 32 pixels or more.\n"


def test_sigterm_in_a_callback_that_loses_exceptions(monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped_while_collecting_garbage(phase: str, _: object) -> None:
        if phase == "start":
            signal.raise_signal(signal.SIGTERM)

    def work(*_: object) -> None:
        gc.callbacks.append(stopped_while_collecting_garbage)
        gc.collect()
        gc.callbacks.remove(stopped_while_collecting_garbage)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            time.sleep(0.01)

    monkeypatch.setattr("rmt_jax.cli.models.print_models", work)
    with pytest.raises(SystemExit, match="143"):
        main(["models"])


def test_ctrl_c(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rmt_jax.cli.models.print_models", interrupted)
    assert main(["models"]) == 130
    assert "interrupted" in capsys.readouterr().err
