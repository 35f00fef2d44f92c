"""The platform's notice, from a metadata server as Google's answers."""

import http.server
import threading
import time
import urllib.parse
from collections.abc import Iterator

import pytest

from rmt_jax.training.distributed import _tpu_workers
from rmt_jax.training.google import on_google_vm, read_metadata
from rmt_jax.training.interrupt import StopRequest
from rmt_jax.training.preemption import PreemptionNotice


class Metadata(http.server.ThreadingHTTPServer):
    """Answers with `values`; with wait_for_change only once `changed`, or after timeout_sec."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.changed = threading.Event()
        self.asked = 0
        super().__init__(("127.0.0.1", 0), Answer)


class Answer(http.server.BaseHTTPRequestHandler):
    server: Metadata

    def do_GET(self) -> None:
        self.server.asked += 1
        url = urllib.parse.urlparse(self.path)
        words = urllib.parse.parse_qs(url.query)
        if words.get("wait_for_change") == ["true"]:
            self.server.changed.wait(float(words["timeout_sec"][0]))
        value = self.server.values.get(url.path.removeprefix("/computeMetadata/v1/instance/"))
        refused = self.headers["Metadata-Flavor"] != "Google"
        self.send_response(403 if refused else 404 if value is None else 200)
        self.end_headers()
        self.wfile.write((value or "").encode())

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch) -> Iterator[Metadata]:
    with Metadata() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("GCE_METADATA_HOST", f"127.0.0.1:{server.server_port}")
        yield server
        server.changed.set()
        server.shutdown()


def stopped_within(stop: StopRequest, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not stop and time.monotonic() < deadline:
        time.sleep(0.01)
    return bool(stop)


def test_a_notice_while_training_asks_for_a_stop(metadata: Metadata) -> None:
    metadata.values["preempted"] = "FALSE"
    with StopRequest() as stop, PreemptionNotice(stop):
        assert not stopped_within(stop, 0.3)
        metadata.values["preempted"] = "TRUE"
        metadata.changed.set()
        assert stopped_within(stop, 10)
        assert stop.exit_code == 143


def test_a_notice_before_the_start_counts(metadata: Metadata) -> None:
    metadata.values["preempted"] = "TRUE"
    with StopRequest() as stop, PreemptionNotice(stop):
        assert stopped_within(stop, 10)


def test_what_is_not_there_is_none(metadata: Metadata) -> None:
    assert on_google_vm()
    assert read_metadata("attributes/tpu-env") is None


def test_workers_of_a_pod(metadata: Metadata) -> None:
    assert _tpu_workers({"JAX_PLATFORMS": ""}) == 1
    metadata.values["attributes/worker-network-endpoints"] = "a:0:10.0.0.1,b:1:10.0.0.2"
    assert _tpu_workers({}) == 2
    assert _tpu_workers({"JAX_PLATFORMS": "cpu"}) == 1
    metadata.values["attributes/tpu-env"] = "ZONE: 'x'\nMEGASCALE_NUM_SLICES: '3'\n"
    assert _tpu_workers({}) == 6
    assert _tpu_workers({"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "a,b,c,d"}) == 4


def test_a_server_without_that_value_is_not_asked_all_the_time(metadata: Metadata) -> None:
    """Some servers know only a part of the metadata, and say so at once."""
    with StopRequest() as stop, PreemptionNotice(stop):
        time.sleep(0.5)
        assert metadata.asked == 1
