"""`rmt data check`: what is in a data set, and what is wrong with it."""

import pathlib

import numpy as np
import pytest

from rmt_jax.cli import main
from tests.data.segmentation import standin


def check(root: pathlib.Path, *more: str) -> int:
    return main(["data", "check", "--data-name", "label_folder", "--data-dir", str(root), "--split", "train", *more])


def test_classes_are_counted(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    standin.write(tmp_path, "train", 7)
    (tmp_path / "classes.txt").write_text("\n".join(standin.CLASSES))
    assert check(tmp_path) == 0
    out = capsys.readouterr().out
    everything = [standin.example(i)[1].ravel() for i in range(7)]
    counts = np.bincount(np.concatenate(everything), minlength=256)
    assert out.startswith(f"{tmp_path.name}/train: 7 pictures, 3 classes\n5 shapes when resized")
    for label, name in [*enumerate(standin.CLASSES), (255, "(ignored)")]:
        assert f"{label:4}  {name:24} {counts[label] / counts.sum():8.3%} of the pixels" in out
    shown = sum(1 in labels for labels in everything)
    assert f"of the pixels, in {shown} pictures" in out


def test_problems_are_listed(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    standin.write(tmp_path, "train", 25)
    (tmp_path / "images/train/03.png").write_bytes(b"nothing")
    (tmp_path / "labels/train/04.png").write_bytes(standin.encode(np.zeros((3, 4), np.uint8)))
    assert check(tmp_path, "--num-classes", "3") == 1
    out = capsys.readouterr().out
    assert "cannot decode the picture of record '03.png'" in out
    assert "its label map 4 x 3: expected the same" in out
    assert check(tmp_path, "--num-classes", "1") == 1
    assert "and 5 more" in capsys.readouterr().out


@pytest.mark.parametrize("words", [[], ["--num-classes", "300"], ["--num-classes", "3", "--threads", "0"]])
def test_what_cannot_be_checked(tmp_path: pathlib.Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    standin.write(tmp_path, "train", 1)
    assert check(tmp_path, *words) == 2
    assert capsys.readouterr().err.startswith("error: ")
