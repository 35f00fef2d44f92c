"""The metadata server of Google's virtual machines: which workers there are, and that this one is about to go."""

import os
import pathlib
import urllib.error
import urllib.request

_PRODUCT = pathlib.Path("/sys/class/dmi/id/product_name")
_ANSWERS_WITHIN = 10.0  # seconds, beyond what a request itself may wait


def on_google_vm() -> bool:
    """Whether there is a metadata server to ask: on a Google VM, or where GCE_METADATA_HOST names one."""
    if "GCE_METADATA_HOST" in os.environ:
        return True
    try:
        return _PRODUCT.read_text().startswith("Google")
    except OSError:
        return False


def read_metadata(path: str, *, wait_seconds: int = 0) -> str | None:
    """The value at instance/PATH, None where there is no such value.

    wait_seconds: answer only when the value changes, or after so long.

    Raises:
        OSError: the server does not answer.
    """
    host = os.environ.get("GCE_METADATA_HOST", "metadata.google.internal")
    wait = f"?wait_for_change=true&timeout_sec={wait_seconds}" if wait_seconds else ""
    request = urllib.request.Request(
        f"http://{host}/computeMetadata/v1/instance/{path}{wait}", headers={"Metadata-Flavor": "Google"}
    )
    # Never through a proxy: the server is on the machine's own link.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=wait_seconds + _ANSWERS_WITHIN) as answer:
            return answer.read().decode().strip()
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 404:
            return None
        raise
