"""A process that is aborted from outside of Python still leaves a message."""

import signal
import subprocess
import sys

import pytest

PROGRAM = """
import os, signal, sys
from rmt_jax.training.witness import Witness
with Witness("stopped: the other is gone"):
    if sys.argv[1] != "0":
        os.kill(os.getpid(), int(sys.argv[1]))
print("done")
"""


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (0, ""),
        (signal.SIGABRT, "stopped: the other is gone\n"),
        (signal.SIGKILL, ""),  # whoever kills it knows
        (signal.SIGSEGV, "Fatal Python error: Segmentation fault"),
    ],
)
def test_only_an_abort_is_explained(number: int, said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(int(number))], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == -number
    assert done.stderr.startswith(said) if said else done.stderr == ""
    assert ("stopped:" in done.stderr) == (number == signal.SIGABRT)
