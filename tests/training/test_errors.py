"""What cannot run says so before any work starts: exit code 2, one message, nothing written."""

import json
import pathlib
from collections.abc import Callable

import jax.numpy as jnp
import pytest

from rmt_jax.training import run
from rmt_jax.training.checkpoint import Checkpoints
from rmt_jax.training.config import CheckpointConfig
from rmt_jax.training.loop import Training

Attempt = Callable[..., str]


@pytest.fixture
def attempt(capsys: pytest.CaptureFixture[str], words: list[str], tmp_path: pathlib.Path) -> Attempt:
    """Run configs/digits.py, tiny, with more words; returns the error message."""

    def attempt(*more: str, workdir: pathlib.Path = tmp_path / "run", mode: str = "train") -> str:
        code = run("configs/digits.py", [*words, *more], workdir=str(workdir), mode=mode)
        error = capsys.readouterr().err
        assert code == 2
        assert error.startswith("error: ")
        assert error.count("error") == 1
        return error

    return attempt


def test_unknown_key(attempt: Attempt, tmp_path: pathlib.Path) -> None:
    assert "optimizer.learning_rat. Did you mean optimizer.learning_rate?" in attempt(
        "--config.optimizer.learning_rat=1"
    )
    assert not (tmp_path / "run").exists()


def test_unknown_model(attempt: Attempt, tmp_path: pathlib.Path) -> None:
    assert "Unknown model 'rmt_nona'. Did you mean 'rmt_nano'?" in attempt("--config.model.name=rmt_nona")
    assert not (tmp_path / "run").exists()


def test_unknown_data_set(attempt: Attempt, tmp_path: pathlib.Path) -> None:
    assert "did you mean digits" in attempt("--config.data.name=digitz")
    assert not (tmp_path / "run").exists()


def test_data_that_are_not_there(attempt: Attempt, tmp_path: pathlib.Path) -> None:
    message = attempt("--config.data.name=imagenet2012", f"--config.data.dir={tmp_path}")
    assert "is not prepared" in message
    assert not (tmp_path / "run").exists()


def test_batch_that_the_devices_do_not_divide(attempt: Attempt) -> None:
    assert "batch_size=100 cannot be divided over 8 device(s). Use 96 or 104." in attempt("--config.batch_size=100")
    message = attempt("--config.batch_size=24", "--config.grad_accum_steps=2")
    assert "batch_size=24 cannot be divided over 8 device(s) x grad_accum_steps=2. Use 16 or 32." in message
    assert "eval_batch_size=12 cannot be divided" in attempt("--config.eval_batch_size=12")


def test_mesh_that_the_devices_do_not_fill(attempt: Attempt) -> None:
    assert "mesh.data=3 and mesh.fsdp=1 do not make 8 device(s)" in attempt("--config.mesh.data=3")


def test_workdir_that_cannot_be_written(attempt: Attempt, tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").touch()
    assert "cannot be written: Not a directory" in attempt(workdir=tmp_path / "file" / "run")


def test_evaluation_without_a_checkpoint(attempt: Attempt, tmp_path: pathlib.Path) -> None:
    assert "--mode=eval needs weights" in attempt(mode="eval")
    assert not (tmp_path / "run").exists()


def test_weights_that_are_not_there(attempt: Attempt, tmp_path: pathlib.Path) -> None:
    assert "neither a model directory" in attempt(f"--config.init_from={tmp_path}", mode="eval")


@pytest.fixture
def stopped_run(words: list[str], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A workdir with config.json and checkpoints as a run leaves it, without the run."""
    workdir = tmp_path / "run"
    monkeypatch.setattr(Training, "_fit", lambda *args: False)
    assert run("configs/digits.py", words, workdir=str(workdir)) == 143  # as of a run that was stopped
    monkeypatch.undo()
    checkpoints = Checkpoints(workdir, CheckpointConfig())
    part = {"params": jnp.zeros(1)}
    checkpoints.save(7, part | {"batch_stats": {}, "ema": part, "opt_state": {}, "step": jnp.array(7)})
    checkpoints.close()
    return workdir


def test_workdir_of_another_configuration(attempt: Attempt, stopped_run: pathlib.Path) -> None:
    message = attempt("--config.seed=5", "--config.data.num_threads=1", workdir=stopped_run)
    assert "another configuration:\n  seed: 0 there, 5 now\n" in message  # the number of threads may differ
    assert "seed: 0 there, 5 now" in attempt("--config.seed=5", workdir=stopped_run, mode="eval")


def test_resuming_with_other_classes(attempt: Attempt, stopped_run: pathlib.Path) -> None:
    path = stopped_run / "classes.json"
    path.write_text(json.dumps(["zero", *json.loads(path.read_text())[1:]]))
    assert "other classes: class 0 is 'zero' there, '0' here." in attempt(workdir=stopped_run)
    path.write_text("{}")
    assert "classes.json does not hold the class names" in attempt(workdir=stopped_run)


def test_checkpoint_beyond_the_end(attempt: Attempt, stopped_run: pathlib.Path) -> None:
    path = stopped_run / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"epochs": 1}))
    message = attempt("--config.epochs=1", workdir=stopped_run)
    assert "is at step 7, beyond the 5 steps of this run" in message


def test_damaged_and_missing_config_json(attempt: Attempt, stopped_run: pathlib.Path) -> None:
    (stopped_run / "config.json").write_text("{")
    assert "config.json is damaged" in attempt(workdir=stopped_run)
    (stopped_run / "config.json").unlink()
    assert "holds checkpoints without a config.json" in attempt(workdir=stopped_run)
