"""One run a workdir: the first holds a lock on it for its whole life."""

import datetime
import errno
import fcntl
import json
import os
import pathlib
import socket
from collections.abc import Mapping
from typing import Any

from rmt_jax.training.exit_codes import TryAgainError
from rmt_jax.training.report import log

LOCK_FILE = ".lock"

_HELD = (errno.EWOULDBLOCK, errno.EACCES)
_UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


class WorkdirLock:
    """Holds workdir/.lock until it is closed. The system lets go of it when the process ends, however it ends.

    The file says who holds it; it stays when the run is over, and means nothing then.

    Raises:
        TryAgainError: a process on another host holds it. A machine that died without a word keeps it for a while: a
            network file system does not know that it is gone.
        ValueError: another run on this host holds it, or the workdir, which is created, cannot be written.
    """

    def __init__(self, workdir: pathlib.Path):
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            self._file = os.open(workdir / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise ValueError(
                f"The workdir {workdir} cannot be written: {error.strerror}. Choose another with --workdir."
            ) from error
        try:
            self._lock(workdir)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "WorkdirLock":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the workdir."""
        os.close(self._file)

    def _lock(self, workdir: pathlib.Path) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _HELD:
                holder = self._holder()
                message = (
                    f"The workdir {workdir} is in use by {_describe(holder)}. Wait for that run or stop it, or use "
                    f"another --workdir."
                )
                if holder and holder["host"] != socket.gethostname():
                    raise TryAgainError(
                        f"{message} If that machine is gone, its lock ends when the file server notices."
                    ) from error
                raise ValueError(message) from error
            if error.errno not in _UNSUPPORTED:
                raise
            log(f"The file system of {workdir} has no locks ({error.strerror}): see that no second run uses it.")
        now = datetime.datetime.now(datetime.UTC).isoformat(sep=" ", timespec="seconds")
        holder = {"host": socket.gethostname(), "pid": os.getpid(), "started": now}
        try:
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, (json.dumps(holder) + "\n").encode(), 0)
        except OSError as error:
            raise ValueError(f"The workdir {workdir} cannot be written: {error.strerror}.") from error

    def _holder(self) -> dict[str, Any]:
        """{"host", "pid", "started"}, empty where it does not say, since it may just be writing that."""
        try:
            holder = json.loads(os.pread(self._file, 4096, 0))
            return {name: holder[name] for name in ("host", "pid", "started")}
        except (OSError, ValueError, KeyError, TypeError):
            return {}


def _describe(holder: Mapping[str, Any]) -> str:
    if not holder:
        return "another run"
    return f"process {holder['pid']} on {holder['host']}, started at {holder['started']}"
