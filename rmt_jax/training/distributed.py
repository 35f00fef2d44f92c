"""Several processes as one program: whether there are several, and their start."""

import contextlib
import dataclasses
import math
import os
import sys
import threading
from collections.abc import Mapping
from typing import Any

import jax

from rmt_jax.training.exit_codes import TRY_AGAIN
from rmt_jax.training.google import on_google_vm, read_metadata

# What jax's own detection reads in a SLURM step; without srun some are missing, and the process is alone.
_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")

# Our own watch (hosts.py) finds a lost host earlier and names it; jax then ends the process without a message.
_HEARTBEAT_SECONDS = 100


@dataclasses.dataclass(frozen=True)
class Processes:
    """What the command line says of the processes of a run; None is left to the environment.

    Attributes:
        coordinator: HOST:PORT of process 0, where the others find it.
        num_processes: of the whole run.
        process_id: of this one, from 0.
    """

    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None


def start_processes(given: Processes, *, timeout: float = 300.0) -> None:
    """Join the other processes of this run. One process alone starts nothing.

    Named by `given`, or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID; else found on TPU pod slices and
    in SLURM steps of several tasks. To be called before anything else of jax. Where the others do not come in time the
    process ends, with a message and exit code 75: the same command may be given again.

    Args:
        given: on the command line.
        timeout: seconds to wait for the other processes.

    Raises:
        ValueError: the settings contradict each other, or cannot be used.
    """
    named = _with_environment(given, os.environ)
    if named != Processes():
        settings = _explicit(named)
    elif _is_slurm_step(os.environ):
        settings = {"cluster_detection_method": "slurm"}
    elif _tpu_workers(os.environ) > 1:
        settings = {}  # jax asks the same sources for addresses and its own number
    else:
        return
    if settings.get("num_processes") == 1:
        return
    # It would take SIGTERM for itself; a run decides about its stops with its own signal handlers.
    jax.config.update("jax_enable_preemption_service", False)
    # Where jax itself gives up, it aborts with a stack trace of C++: so it is given more time than it gets.
    late = threading.Timer(timeout, _give_up, [_not_together(settings, timeout)])
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(
            **settings,
            initialization_timeout=math.ceil(timeout) + 60,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
        )
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"The processes of this run were not brought together: {reason}") from error
    finally:
        late.cancel()


def _with_environment(given: Processes, environment: Mapping[str, str]) -> Processes:
    values: dict[str, Any] = dataclasses.asdict(given)
    if values["coordinator"] is None:
        values["coordinator"] = environment.get("JAX_COORDINATOR_ADDRESS")
    for name in ("num_processes", "process_id"):
        text = environment.get(f"JAX_{name.upper()}")
        if values[name] is None and text is not None:
            if not text.isdecimal():
                raise ValueError(f"JAX_{name.upper()}={text!r}: expected a number.")
            values[name] = int(text)
    return Processes(**values)


def _explicit(named: Processes) -> dict[str, Any]:
    """The arguments of `jax.distributed.initialize`.

    Raises:
        ValueError: one is missing, or out of range.
    """
    address, count, index = named.coordinator, named.num_processes, named.process_id
    if count == 1 and index in (None, 0):
        return {"num_processes": 1}
    if address is None or count is None or index is None:
        missing = ", ".join(f"--{name}" for name, value in dataclasses.asdict(named).items() if value is None)
        raise ValueError(
            f"Several processes need --coordinator=HOST:PORT, --num_processes and --process_id (or the variables "
            f"JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID). Missing: {missing}."
        )
    if count < 1 or not 0 <= index < count:
        raise ValueError(f"--process_id={index} must be at least 0 and less than --num_processes={count}.")
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"--coordinator={address} must be HOST:PORT, such as 10.0.0.1:8476.")
    return {"coordinator_address": address, "num_processes": count, "process_id": index}


def _is_slurm_step(environment: Mapping[str, str]) -> bool:
    return all(name in environment for name in _SLURM) and int(environment["SLURM_NTASKS"]) > 1


def _tpu_workers(environment: Mapping[str, str]) -> int:
    """Workers of all slices, by the variables of GKE or the metadata of a TPU VM; 1 where there are no TPUs."""
    platforms = environment.get("JAX_PLATFORMS", "")
    if platforms and "tpu" not in platforms:
        return 1
    workers = environment.get("TPU_PROCESS_ADDRESSES", environment.get("TPU_WORKER_HOSTNAMES"))
    slices = environment.get("MEGASCALE_NUM_SLICES")
    if "TPU_SKIP_MDS_QUERY" not in environment and on_google_vm():
        with contextlib.suppress(OSError):  # a machine without TPUs
            workers = workers or read_metadata("attributes/worker-network-endpoints")
            slices = slices or _tpu_env("MEGASCALE_NUM_SLICES")
    return len(workers.split(",")) * int(slices or 1) if workers else 1


def _tpu_env(name: str) -> str | None:
    """One value of the metadata's text of lines KEY: 'VALUE'."""
    for line in (read_metadata("attributes/tpu-env") or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip().strip("'")
    return None


def _give_up(message: str) -> None:
    """Ends the program while the main thread waits inside jax."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    os._exit(TRY_AGAIN)


def _not_together(settings: Mapping[str, Any], timeout: float) -> str:
    if "coordinator_address" not in settings:
        return f"The processes of this run did not find each other within {timeout:g} s. Are all of them started?"
    address, count, index = settings["coordinator_address"], settings["num_processes"], settings["process_id"]
    return (
        f"Process {index} of {count} did not get all processes together at {address} within {timeout:g} s. Is process "
        f"0 running there with the same --coordinator and --num_processes, are all others started, and is the port "
        f"open between the hosts?"
    )
