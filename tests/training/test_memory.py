"""What becomes of memory that a process has freed."""

import os
import platform
import subprocess
import sys
import types

import pytest

from rmt_jax.training import memory

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="settings of glibc")

# Prints what becomes of memory and how many pages the system had to give when a thread needs 256 MiB once more.
PROGRAM = """
import resource, threading
from rmt_jax.training.memory import describe_memory, keep_freed_memory

keep_freed_memory()
found = []

def use_and_free():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"1" * 2**28
    found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

for _ in range(2):
    thread = threading.Thread(target=use_and_free)
    thread.start()
    thread.join()
print(describe_memory(), found[1], sep=": ")
"""
PAGES = 2**28 // 2**12


def test_a_second_step_gets_the_memory_of_the_first() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    environment["JAX_PLATFORMS"] = "cpu"
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    described, pages = done.stdout.strip().split(": ")
    assert described == "kept for the next step"
    assert int(pages) < PAGES // 100


@pytest.mark.parametrize(
    ("platforms", "variables"),
    [
        ("cpu", {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=7"}),
        ("cpu", {"MALLOC_TRIM_THRESHOLD_": "131072"}),
        ("tpu,cpu", {}),
    ],
)
def test_nothing_is_changed_where_the_environment_has_said_something_or_there_may_be_accelerators(
    monkeypatch: pytest.MonkeyPatch, platforms: str, variables: dict[str, str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    on_platforms(monkeypatch, platforms)
    monkeypatch.setattr(memory, "_kept", False)
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: pytest.fail("changed"))
    memory.keep_freed_memory()
    assert memory.describe_memory() == "left to the C library"


@pytest.mark.parametrize("installed", [None, "libtpu", "jax_plugins", "an entry point"])
def test_where_no_platform_is_named_it_is_cpus_without_a_plugin(
    monkeypatch: pytest.MonkeyPatch, installed: str | None
) -> None:
    on_platforms(monkeypatch, None)
    monkeypatch.setattr(memory.importlib.util, "find_spec", lambda name: name == installed or None)
    entry_points = [installed] if installed == "an entry point" else []
    monkeypatch.setattr(memory.importlib.metadata, "entry_points", lambda group: entry_points)
    assert memory._computes_on_cpus() == (installed is None)


def on_platforms(monkeypatch: pytest.MonkeyPatch, platforms: str | None) -> None:
    """As if jax.config.jax_platforms, which is JAX_PLATFORMS, were these."""
    monkeypatch.setattr(memory, "jax", types.SimpleNamespace(config=types.SimpleNamespace(jax_platforms=platforms)))
