"""Whether there are several processes, and what is wrong with the settings."""

import subprocess
import sys

import jax
import pytest

from rmt_jax.training.distributed import Processes, start_processes
from rmt_jax.training.exit_codes import TRY_AGAIN
from tests.training.conftest import REPOSITORY
from tests.training.processes import free_port

CLUSTER = (
    "JAX_COORDINATOR_ADDRESS",
    "JAX_NUM_PROCESSES",
    "JAX_PROCESS_ID",
    "TPU_WORKER_HOSTNAMES",
    "GCE_METADATA_HOST",
)
SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "127.0.0.1",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "1",
}


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*CLUSTER, *SLURM):
        monkeypatch.delenv(name, raising=False)


def test_one_process_starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    start_processes(Processes())
    start_processes(Processes(num_processes=1))
    start_processes(Processes("host:1", 1, 0))
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost")
    for name, value in (SLURM | {"SLURM_NTASKS": "1"}).items():
        monkeypatch.setenv(name, value)
    start_processes(Processes())
    assert not jax.distributed.is_initialized()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Processes(process_id=1), r"Missing: --coordinator, --num_processes\."),
        (Processes("a:1", 4), r"Missing: --process_id\."),
        (Processes("a:1", 4, 4), "--process_id=4 must be at least 0 and less than --num_processes=4"),
        (Processes("a:1", 4, -1), "--process_id=-1 must be at least 0"),
        (Processes("a", 4, 0), "--coordinator=a must be HOST:PORT"),
        (Processes("a:b", 4, 0), "--coordinator=a:b must be HOST:PORT"),
    ],
)
def test_settings_that_contradict_each_other(given: Processes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        start_processes(given)


def test_settings_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "a:1")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    with pytest.raises(ValueError, match="JAX_NUM_PROCESSES='two': expected a number"):
        start_processes(Processes())
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    monkeypatch.setenv("JAX_PROCESS_ID", "1")
    with pytest.raises(ValueError, match="--process_id=5 must be"):
        start_processes(Processes(process_id=5))  # the command line wins


START = "from rmt_jax.training.distributed import *; start_processes(Processes({}), timeout=3.0)"


@pytest.mark.slow
def test_a_coordinator_that_is_not_there() -> None:
    code = START.format(f"'127.0.0.1:{free_port()}', 2, 1")
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == TRY_AGAIN, done.stderr
    assert done.stderr.startswith("error: Process 1 of 2 did not get all processes together at 127.0.0.1")
    assert "Traceback" not in done.stderr
