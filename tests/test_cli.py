"""The command `rmt`."""

import pytest

from rmt_jax import __version__
from rmt_jax.cli import main


def test_models_prints_every_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--image-size", "384"]) == 0
    out = capsys.readouterr().out
    assert "26,967,240" in out
    assert "14.642 G" in out
    assert "rmt_l_star" in out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"rmt_jax {__version__}\n"


@pytest.mark.parametrize("words", [[], ["train"], ["models", "--image-size", "16"]])
def test_mistakes_end_with_exit_code_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(words)
    assert "error:" in capsys.readouterr().err
