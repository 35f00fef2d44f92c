"""The processes of a run keep an eye on each other: an error, a lost or a hung one is told to all.

They talk through the key-value store of jax's coordination service, which process 0 serves. A thread works even while
the main thread is stuck in a collective that will never end.
"""

import contextlib
import faulthandler
import json
import multiprocessing
import os
import socket
import sys
import threading
import time
import traceback
from typing import Any, NoReturn

import jax
from jax._src import distributed  # nothing public says which process this is before the devices are started

from rmt_jax.training import exit_codes
from rmt_jax.training.watchdog import ENDED, FAILED, Stand, Status, Watchdog
from rmt_jax.training.witness import Witness

_EVERY = 1.0  # seconds between two looks at the others
_LOST_AFTER = 60.0  # seconds of silence; jax itself ends all processes, without a message, after 100
_LOST_IN_TROUBLE = 5.0  # the same, when a collective has failed already
_EXIT_WITHIN = 5.0  # seconds that a failing process gives the others to read its message
_LAST_TO_LEAVE = 2.0  # seconds that the first process, which serves the store, stays on after the others are done
_END_WITHIN = 600.0  # seconds that the first process at its end waits for the last one

_GONE = "it was killed, or its machine or network is gone"

_NAMES, _STANDS, _ERRORS, _SEEN = "rmt_jax/names", "rmt_jax/stands", "rmt_jax/errors", "rmt_jax/seen"


class Hosts:
    """This process among those of its run; used with `with` around all of its work.

    What is raised inside ends every process with the message; a clean end waits for the others.

    Attributes:
        status: what this process does, kept up to date by who does it.
        count: processes of the run.
        index: number of this one.
    """

    def __init__(self) -> None:
        self.status = Status()
        self._watchdog: Watchdog | None = None
        # Not jax.process_count and index, which start the devices: what goes wrong there is to be told to all as well.
        together = jax.distributed.is_initialized()
        self.count: int = distributed.global_state.num_processes if together else 1
        self.index: int = distributed.global_state.process_id if together else 0
        self._client: Any = distributed.global_state.client if self.count > 1 else None
        self._names = [socket.gethostname()] * self.count
        self._heard: dict[int, tuple[str, float]] = {}
        self._failing = self._dumped = False
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._look_around, name="hosts", daemon=True)

    def __enter__(self) -> "Hosts":
        if self._client:
            self._names = self.exchange("names", socket.gethostname())
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if self._client and error is not None:
            self._fail_with(error)
        if self._client:
            self.status.enter(ENDED)
            self.barrier("ended", _END_WITHIN)
        self._stopped.set()
        if self._client and self.index == 0:
            time.sleep(_LAST_TO_LEAVE)
        self._thread.join()

    def name(self, index: int) -> str:
        """Of a process, for messages."""
        return f"process {index} (host {self._names[index]})"

    def witness(self) -> contextlib.AbstractContextManager[object]:
        """To be active while this process depends on the first one, whose end makes jax abort all others."""
        if self.index == 0:
            return contextlib.nullcontext()
        return Witness(
            f"stopped: host {self._names[0]} (process 0): does not answer; {_GONE} "
            f"(jax aborted process {self.index} on host {self._names[self.index]}; its reason is above)"
        )

    def watch(self, seconds: float) -> None:
        """From now on say it when no step is finished for so long."""
        self._watchdog = Watchdog(seconds)

    def barrier(self, name: str, seconds: float = _END_WITHIN) -> None:
        """Until all processes are here; each name serves once."""
        self._client.wait_at_barrier(f"rmt_jax/{name}", round(seconds * 1000))

    def exchange(self, name: str, text: str) -> list[str]:
        """What each process gave, by its number; each name serves once."""
        folder = f"rmt_jax/{name}"
        self._client.key_value_set(f"{folder}/{self.index}", text)
        self.barrier(name)
        given = _numbered(self._client.key_value_dir_get(folder))
        return [given[index] for index in range(self.count)]

    def _fail_with(self, error: BaseException) -> NoReturn:
        if isinstance(error, jax.errors.JaxRuntimeError):
            # Mostly a collective that failed because of another process: the thread ends this one when it knows which.
            self.status.enter(FAILED)
            time.sleep(_LOST_IN_TROUBLE + _EXIT_WITHIN)
        traceback.print_exception(error)
        message = "".join(traceback.format_exception_only(error)).strip()
        self.fail(message, exit_codes.INTERRUPTED if isinstance(error, KeyboardInterrupt) else exit_codes.FAILED)
        raise error

    def fail(self, message: str, code: int) -> None:
        """End all processes of the run with this exit code, the others with the message; alone it does nothing."""
        if not self._client:
            return
        self._failing = True
        self._publish_error(self.index, message, code)
        self._client.key_value_set(f"{_SEEN}/{self.index}", "", allow_overwrite=True)
        self._leave(code)

    def _publish_error(self, index: int, message: str, code: int) -> None:
        text = json.dumps({"process": index, "message": message, "code": code})
        self._client.key_value_set(f"{_ERRORS}/{index}", text, allow_overwrite=True)

    def _look_around(self) -> None:
        while not self._stopped.wait(_EVERY):
            if not self._client:
                self._watch({f"process 0 (host {self._names[0]})": self.status.stand()})
                continue
            try:
                self._look_at_others()
            except jax.errors.JaxRuntimeError:
                # At the end the first process may leave while this one still asks it.
                if not self._stopped.wait(_EVERY) and not self._failing:
                    self._stop_with(0, f"does not answer; {_GONE}", exit_codes.TRY_AGAIN)

    def _look_at_others(self) -> None:
        self._client.key_value_set(f"{_STANDS}/{self.index}", self.status.stand().to_json(), allow_overwrite=True)
        errors = _numbered(self._client.key_value_dir_get(_ERRORS))
        if errors and not self._failing:
            error = json.loads(errors[min(errors)])
            self._client.key_value_set(f"{_SEEN}/{self.index}", "", allow_overwrite=True)
            self._stop_with(error["process"], error["message"], error["code"])
        # Only one asks all, so that the service's work grows with the number of processes and not with its square.
        if self.index == 0:
            stands = self._all_stands()
            self._look_for_lost(stands)
            self._watch({self.name(index): stand for index, stand in stands.items()})
        else:
            self._watch({self.name(self.index): self.status.stand()}, speak=False)

    def _all_stands(self) -> dict[int, Stand]:
        now = time.monotonic()
        for index, text in _numbered(self._client.key_value_dir_get(_STANDS)).items():
            if index not in self._heard or self._heard[index][0] != text:
                self._heard[index] = text, now
        return {index: Stand.from_json(text, now - heard) for index, (text, heard) in sorted(self._heard.items())}

    def _look_for_lost(self, stands: dict[int, Stand]) -> None:
        trouble = any(stand.phase == FAILED for stand in stands.values())
        for index, stand in stands.items():
            if stand.silence > (_LOST_IN_TROUBLE if trouble else _LOST_AFTER) and stand.phase != ENDED:
                heard = f"not heard of for {stand.silence:.0f} s, the last time {stand.phase}"
                self._publish_error(index, f"{heard}; {_GONE}", exit_codes.TRY_AGAIN)

    def _watch(self, stands: dict[str, Stand], *, speak: bool = True) -> None:
        message = self._watchdog.check(stands) if self._watchdog else None
        if message is None:
            return
        if speak:
            print(message, file=sys.stderr, flush=True)
        if not self._dumped:
            self._dumped = True
            faulthandler.dump_traceback(sys.stderr)

    def _stop_with(self, index: int, message: str, code: int) -> NoReturn:
        """Leave because of another process; called in the thread."""
        print(f"stopped: host {self._names[index]} (process {index}): {message}", file=sys.stderr)
        self._leave(code)

    def _leave(self, code: int) -> NoReturn:
        """Without waiting for the main thread, which may be stuck; what is half saved lies in temporary folders."""
        if self.index == 0:  # last, because the others read from here
            deadline = time.monotonic() + _EXIT_WITHIN
            while time.monotonic() < deadline and len(self._seen()) < self.count:
                time.sleep(0.1)
            # Who has seen the error has still to end, and jax aborts those who find this one gone.
            time.sleep(_LAST_TO_LEAVE)
        for child in multiprocessing.active_children():
            child.kill()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    def _seen(self) -> dict[int, str]:
        return _numbered(self._client.key_value_dir_get(_SEEN))


def _numbered(pairs: list[tuple[str, str]]) -> dict[int, str]:
    """[(FOLDER/NUMBER, text)] -> {number: text}"""
    return {int(key.rpartition("/")[2]): text for key, text in pairs}
