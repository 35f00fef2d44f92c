"""Damaged checkpoints: named, moved aside, the newest whole one taken; never a fresh start over them."""

import json
import os
import pathlib
import resource
import shutil
from collections.abc import Callable

import jax.numpy as jnp
import pytest

from rmt_jax.convert import checkpoint_steps, find_damage, read_weights
from rmt_jax.training.checkpoint import Checkpoints, SaveError
from rmt_jax.training.config import CheckpointConfig
from rmt_jax.training.disk import BYTES_AN_ARRAY, check_space, checkpoint_size, describe_size, free_space
from rmt_jax.training.recovery import recover
from rmt_jax.training.state import State


def state(step: int) -> State:
    part = {"params": {"kernel": jnp.arange(3000.0) * step}, "batch_stats": {"mean": jnp.full(3, 0.5)}}
    return part | {"ema": part, "opt_state": {"mu": jnp.ones(5)}, "step": jnp.array(step)}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("saved")
    checkpoints = Checkpoints(workdir, CheckpointConfig())
    for step in (20, 40):
        checkpoints.save(step, state(step))
    checkpoints.close()
    return workdir


@pytest.fixture
def workdir(saved: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    return shutil.copytree(saved, tmp_path / "run")


def folder(workdir: pathlib.Path, step: int = 40) -> pathlib.Path:
    return workdir / "checkpoints" / str(step)


def files(workdir: pathlib.Path, step: int = 40) -> list[pathlib.Path]:
    listed = json.loads((folder(workdir, step) / "manifest.json").read_text())["files"]
    return [folder(workdir, step) / name for name in listed]


def largest(workdir: pathlib.Path, step: int = 40) -> pathlib.Path:
    return max(files(workdir, step), key=lambda path: path.stat().st_size)


def flip(path: pathlib.Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def test_whole_checkpoints_are_whole(workdir: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert [find_damage(folder(workdir, step)) for step in (20, 40)] == [None, None]
    assert recover(workdir) == 40
    assert capsys.readouterr().out == ""
    assert recover(workdir / "new") == 0
    assert not (workdir / "new").exists()


def test_every_file_counts(workdir: pathlib.Path) -> None:
    """Each file of the items, changed, cut or deleted, is found and named."""
    for path in files(workdir):
        name, content = path.relative_to(folder(workdir)).as_posix(), path.read_bytes()
        flip(path)
        assert find_damage(folder(workdir)) == f"{name}: its content has changed since it was written"
        path.write_bytes(content[:-1])
        assert find_damage(folder(workdir)) == f"{name}: {len(content) - 1:,} bytes instead of {len(content):,}"
        path.unlink()
        assert find_damage(folder(workdir)) == f"{name}: missing"
        others = [item for item in ("model", "ema", "optimizer") if not name.startswith(item)]
        assert find_damage(folder(workdir), others) is None
        path.write_bytes(content)
    assert find_damage(folder(workdir)) is None


def test_the_metadata_count(workdir: pathlib.Path) -> None:
    path = folder(workdir) / "_CHECKPOINT_METADATA"
    path.write_text("{")
    assert find_damage(folder(workdir)) == "_CHECKPOINT_METADATA: its content has changed since it was written"
    path.unlink()
    assert find_damage(folder(workdir)) == "_CHECKPOINT_METADATA: missing"


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"files": {"a": 1}}'])
def test_without_its_manifest_a_checkpoint_is_read_through(workdir: pathlib.Path, content: str | None) -> None:
    cut = largest(workdir)
    manifest = folder(workdir) / "manifest.json"
    if content is None:
        manifest.unlink()
    else:
        manifest.write_text(content)
    assert recover(workdir) == 40
    os.truncate(cut, 100)
    damage = find_damage(folder(workdir))
    assert damage is not None
    assert damage.startswith(f"{cut.relative_to(folder(workdir)).parts[0]}: ")
    assert recover(workdir) == 20


Damage = Callable[[pathlib.Path], object]


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda workdir: os.truncate(largest(workdir), 100), ": 100 bytes instead of "),
        (lambda workdir: flip(largest(workdir)), ": its content has changed since it was written"),
        (lambda workdir: largest(workdir).unlink(), ": missing"),
        (lambda workdir: shutil.rmtree(folder(workdir) / "ema"), "ema is missing"),
        (lambda workdir: [path.unlink() for path in folder(workdir).iterdir() if path.is_file()], "_METADATA: missing"),
    ],
)
def test_the_newest_whole_one_is_taken(
    damage: Damage, named: str, workdir: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(workdir)
    content = sorted(path.name for path in folder(workdir).rglob("*"))
    assert recover(workdir) == 20
    said = capsys.readouterr().out
    assert said.startswith("Checkpoint 40 is damaged (")
    assert named in said
    assert said.endswith("): going on from 20. The damaged one is now in damaged/40.\n")
    assert checkpoint_steps(workdir) == [20]
    assert sorted(path.name for path in (workdir / "damaged" / "40").rglob("*")) == content
    assert recover(workdir) == 20
    assert capsys.readouterr().out == ""

    checkpoints = Checkpoints(workdir, CheckpointConfig())  # the step can be saved again, and be damaged again
    checkpoints.save(40, state(40))
    checkpoints.close()
    flip(largest(workdir))
    assert recover(workdir) == 20
    assert sorted(path.name for path in (workdir / "damaged").iterdir()) == ["40", "40-1"]


def test_without_a_whole_one_nothing_runs_and_nothing_is_touched(workdir: pathlib.Path) -> None:
    flip(largest(workdir, 20))
    largest(workdir, 40).unlink()
    before = sorted(workdir.rglob("*"))
    with pytest.raises(ValueError, match="is whole, and a run is never started again over another:") as error:
        recover(workdir)
    message = str(error.value)
    assert "\n  Checkpoint 40 is damaged (" in message
    assert "\n  Checkpoint 20 is damaged (" in message
    assert sorted(workdir.rglob("*")) == before


def test_an_interrupted_save_is_named_and_removed(workdir: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    left = folder(workdir).rename(workdir / "checkpoints" / "40.orbax-checkpoint-tmp")
    shutil.rmtree(left / "ema")
    assert recover(workdir) == 20
    assert capsys.readouterr().out == (
        "The save of step 40 was interrupted (40.orbax-checkpoint-tmp, removed): going on from 20.\n"
    )
    assert not left.exists()


def test_reading_weights_names_the_damage(workdir: pathlib.Path) -> None:
    flip(next(path for path in files(workdir) if "ema" in path.parts))
    with pytest.raises(ValueError, match=r"Checkpoint 40 is damaged \(ema/.*: its content has changed") as error:
        read_weights(workdir)
    assert str(folder(workdir)) in str(error.value)


# Orbax closes its event loop under the threads of the other arrays, which complain on a busy machine.
@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
def test_a_save_that_fails_says_where_and_why(workdir: pathlib.Path) -> None:
    """A limit on the size of files stands for a full disk; tests/damage.py has real ones."""
    checkpoints = Checkpoints(workdir, CheckpointConfig())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(SaveError, match="The checkpoint of step 60 could not be saved in") as error:  # noqa: PT012
            checkpoints.save(60, state(60))
            checkpoints.save(80, state(80))  # the error of a save in the background comes with the next one
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    checkpoints.close()  # says it once only
    assert "The last checkpoint is that of step 40: once that is mended, the same command goes on." in str(error.value)
    assert " are free there, about " in str(error.value)
    assert sorted(checkpoint_steps(workdir)) == [20, 40]
    assert find_damage(folder(workdir)) is None


def test_space_is_looked_for_before_the_run(workdir: pathlib.Path) -> None:
    size = checkpoint_size(state(1))
    assert size == 4 * (3000 + 3) * 2 + 4 * 5 + 4 + 6 * BYTES_AN_ARRAY
    real = sum(path.stat().st_size for path in folder(workdir).rglob("*") if path.is_file())
    assert real < 1.5 * size
    check_space(workdir / "new" / "run", CheckpointConfig(), size)
    free = free_space(workdir)
    assert free is not None
    with pytest.raises(ValueError, match=r"free, and this run needs .*: up to 4 checkpoints of about .*keep_last=1"):
        check_space(workdir / "new", CheckpointConfig(), free // 2)
    with pytest.raises(ValueError, match="up to 3 checkpoints") as error:
        check_space(workdir, CheckpointConfig(keep_last=1), free)
    assert "of which" in str(error.value)
    assert "keep_last" not in str(error.value)


def test_sizes_in_words() -> None:
    sizes = (12, 4_200, 1_500_000, 2_345_000_000)
    assert [describe_size(size) for size in sizes] == ["12 bytes", "4.2 kB", "1.5 MB", "2.3 GB"]
