"""environment.json: one entry for each start, never lost, nothing made up."""

import datetime
import json
import pathlib
import subprocess

import jax
import pytest

from rmt_jax.training import environment
from rmt_jax.version import __version__


def starts(workdir: pathlib.Path) -> list[dict]:
    return json.loads((workdir / "environment.json").read_text())["starts"]


def git(folder: pathlib.Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def test_description():
    described = environment.describe_environment()
    assert described["rmt_jax"] == __version__
    assert described["packages"]["jax"] == jax.__version__
    assert None not in described["packages"].values()
    assert described["devices"]["count"] == jax.device_count()
    assert described["devices"]["platform"] == "cpu"
    assert datetime.datetime.fromisoformat(described["start_time"]).utcoffset() == datetime.timedelta(0)
    assert json.loads(json.dumps(described)) == described


def test_only_variables_of_jax_and_xla(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_a=1")
    monkeypatch.setenv("JAX_SOMETHING", "2")
    monkeypatch.setenv("SOME_API_KEY", "secret")
    described = environment.describe_environment()
    assert described["variables"]["XLA_FLAGS"] == "--xla_a=1"
    assert described["variables"]["JAX_SOMETHING"] == "2"
    assert "secret" not in json.dumps(described["variables"])


def test_a_resumed_run_is_added(tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    environment.write_environment(workdir)
    first = starts(workdir)
    monkeypatch.setattr("sys.orig_argv", ["python", "main.py", "--workdir", "a b"])
    environment.write_environment(workdir)
    assert starts(workdir)[:1] == first
    assert len(starts(workdir)) == 2
    assert starts(workdir)[1]["command_line"] == "python main.py --workdir 'a b'"
    assert [file.name for file in workdir.iterdir()] == ["environment.json"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"starts": 1}'])
def test_a_foreign_file_is_not_overwritten(tmp_path, content):
    path = tmp_path / "environment.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r'environment\.json: expected \{"starts"'):
        environment.write_environment(tmp_path)
    assert path.read_text() == content


def test_git_state(tmp_path):
    git(tmp_path, "init")
    (tmp_path / "file").write_text("1")
    assert environment._git_state(tmp_path) is None, "nothing is tracked here: an installed package in a checkout"
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-m", "first")
    state = environment._git_state(tmp_path)
    assert state is not None
    assert len(state["revision"]) == 40
    assert state["dirty"] is False
    (tmp_path / "results").write_text("untracked")
    assert environment._git_state(tmp_path) == state
    (tmp_path / "file").write_text("2")
    assert environment._git_state(tmp_path) == state | {"dirty": True}


def test_without_git(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment._git_state(pathlib.Path(environment.__file__).parent) is None


def test_outside_a_checkout(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert environment._git_state(tmp_path) is None
