"""What `rmt doctor` finds, on real faults."""

import json
import pathlib
import shutil
from collections.abc import Iterable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from rmt_jax.cli import main
from rmt_jax.cli.output import format_size
from rmt_jax.training import doctor
from rmt_jax.training.checkpoint import Checkpoints
from rmt_jax.training.config import CheckpointConfig, Config, parse
from rmt_jax.training.disk import checkpoint_size, describe_size
from rmt_jax.training.setup import prepare
from rmt_jax.training.workdir import open_workdir
from tests.training.conftest import TINY


def problems(findings: Iterable[doctor.Finding]) -> list[str]:
    return [str(finding) for finding in findings if finding.level == "problem"]


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """Two splits of two classes of three pictures."""
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            place = tmp_path / "data" / split / name
            place.mkdir(parents=True)
            for number in range(3):
                pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.png")
    return tmp_path / "data"


def recipe(folder: pathlib.Path, **token_labels: str) -> Config:
    data: dict[str, Any] = {"name": "folder", "dir": str(folder), "eval_split": "val", "image_size": 32, "repeats": 1}
    if token_labels:
        data |= {"image_size": 224, "token_labels": token_labels, "augment": {"crop_scale": (0.5, 1.0)}}
    return parse({"batch_size": 2, "data": data, "mix": {"group": 2}})


def test_a_sound_data_set(folder: pathlib.Path) -> None:
    findings = [str(finding) for finding in doctor.check_data(recipe(folder))]
    assert len(findings) == 2
    assert all(line.startswith("ok: ") and "6 pictures, 2 classes; 6 of them" in line for line in findings)


def test_a_truncated_picture(folder: pathlib.Path) -> None:
    path = folder / "train/dog/1.png"
    path.write_bytes(path.read_bytes()[:500])
    [line] = problems(doctor.check_data(recipe(folder)))
    assert "1 of 6 pictures tried: cannot decode the picture of record 'dog/1.png'" in line


def test_classes_that_differ_and_a_split_that_is_not_there(folder: pathlib.Path) -> None:
    (folder / "val/dog").rename(folder / "val/wolf")
    assert any("wolf" in line for line in problems(doctor.check_data(recipe(folder))))
    (folder / "val").rename(folder / "test")
    assert any("split 'val'" in line for line in problems(doctor.check_data(recipe(folder))))


def test_label_maps_that_are_not_there(folder: pathlib.Path) -> None:
    [line] = problems(doctor.check_data(recipe(folder, file=str(folder / "maps.array_record"))))
    assert "maps.array_record" in line


def test_versions() -> None:
    assert problems(doctor.check_versions(["numpy>=1.0", "ruff>=99; extra == 'dev'"])) == []
    assert problems(doctor.check_versions(["numpy>=99.1", "no-such-thing>=1"])) == [
        f"problem: numpy {np.__version__} is older than 99.1; pip install 'numpy>=99.1'",
        "problem: no-such-thing is not installed; pip install 'no-such-thing>=1'",
    ]


def test_too_little_disk(tmp_path: pathlib.Path) -> None:
    assert problems(doctor.check_disk(tmp_path / "run", 1)) == []
    [line] = problems(doctor.check_disk(tmp_path / "run", 2**60))
    assert f"{2**60 / 1e9:.1f} GB needed" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("error", [RuntimeError("Unable to initialize backend 'tpu'"), AssertionError()])
def test_no_device(error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What jax raises for JAX_PLATFORMS=tpu and =cuda where there is none; nothing that needs a device is tried."""
    monkeypatch.setattr(jax, "devices", mock.Mock(side_effect=error))
    assert main(["doctor"]) == 1
    [line] = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("ok")]
    assert line.startswith("problem: jax finds no device")
    assert "Unset JAX_PLATFORMS" in line


def small_recipe(digits_dir: str, **changes: Any) -> Config:
    model = {"name": "rmt_nano", "dtype": "float32", "architecture": TINY}
    data = {"name": "digits", "dir": digits_dir, "eval_split": "test", "image_size": 32}
    return parse({"batch_size": 64, "model": model, "data": data} | changes)


@pytest.mark.parametrize(("keep_last", "count"), [(1, 3), (2, 4), (5, 7)])
def test_the_disk_is_seen_as_the_run_sees_it(
    keep_last: int, count: int, digits_dir: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_recipe(digits_dir, checkpoint={"keep_last": keep_last})
    size = checkpoint_size(prepare(config).program.abstract_state)
    for free, fits in ((count * size, True), (count * size - 1, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: mock.Mock(free=free, total=2**40))
        found = problems(doctor.check_recipe(config, tmp_path))
        assert bool(found) is not fits
        assert all(f"up to {count} checkpoints" in line for line in found)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "here").write_bytes(b"x")
    assert problems(doctor.check_recipe(config, tmp_path)) == []


def test_a_run_of_another_configuration(digits_dir: str, tmp_path: pathlib.Path) -> None:
    open_workdir(tmp_path, small_recipe(digits_dir), write=True)
    assert problems(doctor.check_workdir(tmp_path, small_recipe(digits_dir))) == []
    [line] = problems(doctor.check_workdir(tmp_path, small_recipe(digits_dir, seed=1, epochs=5)))
    assert "holds a run of another configuration: seed: 0 there, 1 now, epochs: 300 there, 5 now" in line
    assert line.endswith("Use another --workdir, or the same configuration to resume that run.")


def test_a_damaged_checkpoint_and_damaged_files(tmp_path: pathlib.Path) -> None:
    checkpoints, part = Checkpoints(tmp_path, CheckpointConfig()), {"params": jnp.arange(5000.0)}
    for step in (1, 2):
        checkpoints.save(step, part | {"batch_stats": {}, "ema": part, "opt_state": {}, "step": jnp.array(step)})
    checkpoints.close()
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    assert problems(doctor.check_workdir(tmp_path)) == []

    for path in (tmp_path / "checkpoints/1/ema").rglob("*"):
        if path.is_file() and path.parent.name == "d":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (tmp_path / "config.json").write_text("{")
    (tmp_path / "metrics.jsonl").write_text("nonsense\n{}\n")
    lines = problems(doctor.check_workdir(tmp_path))
    assert [line.partition(" is")[0] for line in lines[:2]] == [
        f"problem: {tmp_path}/config.json",
        f"problem: {tmp_path}/metrics.jsonl",
    ]
    assert lines[2].startswith("problem: checkpoint 1: ema")
    assert len(lines) == 3


def test_one_way_to_say_sizes() -> None:
    assert describe_size(15.75 * 2**30, memory=True) == format_size(15.75 * 2**30) == "15.75 GiB"
    assert describe_size(3 * 2**19, memory=True) == format_size(3 * 2**19) == "1.5 MiB"
    assert describe_size(2.3e9) == "2.3 GB"


def test_arguments(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--config.seed=1"]) == 2
    assert main(["doctor", "--json", str(tmp_path)]) == 2
    assert "expected" not in capsys.readouterr().out


@pytest.mark.slow
def test_all_of_it(folder: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--workdir", str(tmp_path / "run"), "--json", str(tmp_path / "doctor.json")]) == 0
    out = capsys.readouterr().out
    assert "saved and restored, the same bits" in out
    written = json.loads((tmp_path / "doctor.json").read_text())
    assert [doctor.Finding(**finding).level for finding in written].count("problem") == 0
    assert not (tmp_path / "run").exists()
