"""The notice that Google's spot and preemptible machines get before they are taken away."""

import threading

from rmt_jax.training.google import on_google_vm, read_metadata
from rmt_jax.training.interrupt import StopRequest

# A notice comes 30 s ahead. A change between two questions is only seen when the second one ends.
_WAIT_SECONDS = 5
_AGAIN_AFTER = 5.0  # seconds, where the server has no answer


class PreemptionNotice:
    """While active on a Google VM, a notice of preemption asks for a stop."""

    def __init__(self, stop: StopRequest) -> None:
        self._stop = stop
        self._ended = threading.Event()

    def __enter__(self) -> "PreemptionNotice":
        if on_google_vm():
            threading.Thread(target=self._watch, name="preemption", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()

    def _watch(self) -> None:
        wait = 0  # the first question is for what holds already
        while not self._ended.is_set():
            try:
                value = read_metadata("preempted", wait_seconds=wait)
            except OSError:
                value = None
            if value == "TRUE":
                if not self._ended.is_set():
                    self._stop.ask("This machine is about to be taken away (preemption notice)")
                return
            if value is None:  # no answer, or a server without this value: neither waits
                self._ended.wait(_AGAIN_AFTER)
            wait = _WAIT_SECONDS if value is not None else 0
