"""From the command line to a run: the program behind main.py."""

import pathlib
import sys
from collections.abc import Sequence

from rmt_jax.data import TooManyUnreadableError
from rmt_jax.training.agreement import check_agreement
from rmt_jax.training.checkpoint import SaveError
from rmt_jax.training.chips import find_devices
from rmt_jax.training.command_line import load_config
from rmt_jax.training.config import parse
from rmt_jax.training.disk import DISK_ERRORS, describe_stop, reason_of
from rmt_jax.training.distributed import Processes, start_processes
from rmt_jax.training.evaluation import Evaluation
from rmt_jax.training.exit_codes import BAD_INPUT, FAILED, TRY_AGAIN, TryAgainError
from rmt_jax.training.hosts import Hosts
from rmt_jax.training.loop import Training
from rmt_jax.training.memory import keep_freed_memory
from rmt_jax.training.steplog import NonFiniteLossError

MODES: dict[str, type[Training] | type[Evaluation]] = {"train": Training, "eval": Evaluation}


def run(
    config: str,
    words: Sequence[str] = (),
    *,
    workdir: str | None = None,
    mode: str = "train",
    processes: Processes | None = None,
) -> int:
    """Run a config file; returns the exit code.

    0 done, 1 stopped by a loss that is not finite, by too many unreadable pictures or by a disk that takes no more, 2
    something to mend in what was given, 75 in the way of something that passes, 130 or 143 saved after Ctrl-C or
    another request to stop (`exit_codes`). Messages for the user go to standard error.

    Args:
        config: FILE or FILE:ARGUMENT.
        words: --config.KEY=VALUE, each.
        workdir: folder of the run, workdir/NAME_OF_THE_CONFIG where None; one with an interrupted run is gone on with.
        mode: "train", or "eval" for the latest checkpoint there.
        processes: this one's place among those of the run, where that is not found in the environment.
    """
    keep_freed_memory()
    folder = pathlib.Path(workdir) if workdir else pathlib.Path("workdir") / pathlib.Path(config.partition(":")[0]).stem
    try:
        start_processes(processes or Processes())
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    with Hosts() as hosts, hosts.witness():
        return _run(hosts, config, words, folder, mode)


def _run(hosts: Hosts, config: str, words: Sequence[str], folder: pathlib.Path, mode: str) -> int:
    try:
        parsed = parse(load_config(config, words))
        _start_devices()
        check_agreement(hosts, parsed, folder)
        hosts.watch(parsed.watchdog_seconds)
        job = MODES[mode](parsed, folder, hosts.status)
    # Only of what was given: what goes wrong later keeps its traceback.
    except (ValueError, FileNotFoundError, ImportError) as error:
        return _end(hosts, f"error: {error}", BAD_INPUT)
    except TryAgainError as error:
        return _end(hosts, f"stopped: {error}", TRY_AGAIN)
    try:
        return job.run()
    except (NonFiniteLossError, TooManyUnreadableError, SaveError) as error:
        message = str(error)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        message = describe_stop(folder, f"Cannot write in {folder}", reason_of(error))
    return _end(hosts, f"stopped: {message}", FAILED)


def _start_devices() -> None:
    try:
        find_devices()
    except ValueError as error:  # not there, or still used: the run before may just be ending
        raise TryAgainError(str(error)) from error


def _end(hosts: Hosts, message: str, code: int) -> int:
    """Say it here and on all other hosts, which end with the same exit code."""
    print(message, file=sys.stderr)
    hosts.fail(message.partition(": ")[2], code)
    return code
