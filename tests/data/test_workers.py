"""Workers outlive the signals that a run answers to, and do not outlive the run."""

import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from rmt_jax.data import DataConfig, TrainLoader, open_source

REPOSITORY = pathlib.Path(__file__).parents[2]

RUN = """
import multiprocessing, os, sys, time
from rmt_jax.data import DataConfig, TrainLoader, open_source

if __name__ == "__main__":
    config = DataConfig(name="digits", dir=sys.argv[1], eval_split="test", image_size=16, num_workers=1)
    batches = TrainLoader(open_source(config, "train"), config, batch_size=8, seed=0).batches(0, 1000)
    next(batches)
    print(multiprocessing.active_children()[0].pid, flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
def test_a_worker_goes_on_after_the_signals_of_a_run(digits_dir: str) -> None:
    config = DataConfig(name="digits", dir=digits_dir, eval_split="test", image_size=16, num_workers=1)
    batches = TrainLoader(open_source(config, "train"), config, batch_size=8, seed=0).batches(0, 60)
    next(batches)
    [worker] = multiprocessing.active_children()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        os.kill(int(worker.pid or 0), number)
    assert len(list(batches)) == 59  # far more than lay ready
    worker.join(30)
    assert not worker.is_alive()


@pytest.mark.slow
def test_a_killed_run_leaves_no_worker(digits_dir: str, tmp_path: pathlib.Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(RUN)
    command = [sys.executable, str(script), digits_dir]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        worker = int(run.stdout.readline())
        run.kill()
    deadline = time.monotonic() + 30
    while pathlib.Path(f"/proc/{worker}/stat").exists() and time.monotonic() < deadline:
        if pathlib.Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return  # ended; nobody has asked for its exit code
        time.sleep(0.1)
    assert not pathlib.Path(f"/proc/{worker}").exists()
