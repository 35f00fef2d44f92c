"""The processes that prepare batches: they end with the run that they belong to, and not before it."""

import multiprocessing
import os
import signal
import threading
from types import FrameType

_GRACE = 30.0  # seconds that a worker lives on after SIGTERM: a machine that goes has no more to give


def start_worker(index: int, count: int) -> None:
    """Called by Grain in each new worker, in its main thread.

    Ctrl-C in a terminal and the end of a machine send their signals to all processes at once. The run decides what to
    do about them, and needs batches for its last step; a run that is killed leaves nobody behind.
    """
    del index, count
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_later)
    threading.Thread(target=_end_with_the_run, name="run", daemon=True).start()


def _end_later(number: int, frame: FrameType | None) -> None:
    timer = threading.Timer(_GRACE, os._exit, [128 + number])
    timer.daemon = True
    timer.start()


def _end_with_the_run() -> None:
    run = multiprocessing.parent_process()
    if run is not None:
        run.join()
        os._exit(1)
