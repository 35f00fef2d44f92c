"""One run a workdir."""

import os
import pathlib
import signal
import socket
import subprocess
import sys

import pytest

from rmt_jax.training.exit_codes import TryAgainError
from rmt_jax.training.lock import LOCK_FILE, WorkdirLock

# What WorkdirLock does, in a process that starts quickly.
HOLD = """
import fcntl, os, sys
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
file.write('{"pid": %d, "host": "here", "started": "now"}' % os.getpid())
file.flush()
print("held", flush=True)
sys.stdin.read()
"""


def test_a_second_run_is_told_who_holds_the_workdir(tmp_path: pathlib.Path) -> None:
    workdir = tmp_path / "new" / "run"
    with WorkdirLock(workdir), pytest.raises(ValueError, match="is in use by process") as error:
        WorkdirLock(workdir)
    message = str(error.value)
    assert f"process {os.getpid()} on {socket.gethostname()}, started at 20" in message
    assert "Wait for that run or stop it, or use another --workdir." in message
    WorkdirLock(workdir).close()  # free again


def test_a_killed_run_holds_nothing(tmp_path: pathlib.Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path / LOCK_FILE)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(TryAgainError, match=f"in use by process {holder.pid} on here, started at now"):
            WorkdirLock(tmp_path)  # "here" is no name of this host
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        WorkdirLock(tmp_path).close()


def test_a_holder_that_has_not_said_who_it_is(tmp_path: pathlib.Path) -> None:
    with WorkdirLock(tmp_path):
        (tmp_path / LOCK_FILE).write_text("")
        with pytest.raises(ValueError, match="is in use by another run"):
            WorkdirLock(tmp_path)


def test_a_workdir_that_cannot_be_written(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot be written: Not a directory"):
        WorkdirLock(tmp_path / "file" / "run")
