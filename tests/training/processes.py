"""Starts real processes of main.py that make one run together."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from tests.training.conftest import REPOSITORY


class Ended(NamedTuple):
    code: int
    out: str
    err: str


class Processes:
    """`count` processes of one run, each with `devices` virtual devices; their output goes to files.

    By index, `more` has words for one of them alone, `different` variables of the environment.

    Used with `with`: whatever still runs at the end is killed.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        words: Sequence[str],
        environment: dict[str, str],
        *,
        count: int,
        devices: int = 1,
        more: dict[int, list[str]] | None = None,
        different: dict[int, dict[str, str]] | None = None,
    ) -> None:
        self.folder = workdir.parent / f"{workdir.name}-output-{time.monotonic_ns()}"
        self.folder.mkdir(parents=True)
        flags = f"{environment.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
        self.processes: list[subprocess.Popen[bytes]] = []
        where = f"--coordinator=127.0.0.1:{free_port()}"
        for index in range(count):
            launch = [where, f"--num_processes={count}", f"--process_id={index}"] if count > 1 else []
            command = [
                sys.executable,
                "main.py",
                "--workdir",
                str(workdir),
                *launch,
                *words,
                *(more or {}).get(index, []),
            ]
            variables = environment | {"XLA_FLAGS": flags} | (different or {}).get(index, {})
            with (self.folder / f"{index}.out").open("wb") as out, (self.folder / f"{index}.err").open("wb") as err:
                self.processes.append(subprocess.Popen(command, cwd=REPOSITORY, env=variables, stdout=out, stderr=err))

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *error: object) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def text(self, index: int, stream: str = "err") -> str:
        return (self.folder / f"{index}.{stream}").read_text()

    def finish(self, timeout: float = 300) -> list[Ended]:
        """Of each process, once it has ended."""
        deadline = time.monotonic() + timeout
        for process in self.processes:
            process.wait(max(0.1, deadline - time.monotonic()))
        return [
            Ended(process.returncode, self.text(index, "out"), self.text(index))
            for index, process in enumerate(self.processes)
        ]

    def wait_for(self, condition: Callable[[], bool], timeout: float = 300) -> None:
        """Until it holds; fails when the processes end before that."""
        deadline = time.monotonic() + timeout
        while not condition():
            ended = [process.poll() is not None for process in self.processes]
            if all(ended) or time.monotonic() > deadline:
                texts = "\n".join(self.text(index) + self.text(index, "out") for index in range(len(ended)))
                raise AssertionError(f"never came ({ended}):\n{texts}")
            time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def logged_steps(workdir: pathlib.Path) -> list[int]:
    """Steps whose metrics are written."""
    path = workdir / "metrics.jsonl"
    rows: list[dict[str, Any]] = []
    if path.exists():
        rows = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    return [row["step"] for row in rows]


def environment_without_cluster() -> dict[str, str]:
    """This process's variables without those that name a cluster."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "JAX_", "TPU_"))}
