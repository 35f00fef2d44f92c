"""What becomes of memory that this process has freed."""

import ctypes
import importlib.metadata
import importlib.util
import os
import platform

import jax

# Of glibc's malloc.h: how much memory has to be free at the end of a heap to go back to the system, how many blocks may
# come from the system by themselves, how many heaps there may be.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8

_kept = False


def keep_freed_memory() -> None:
    """Keep it where jax computes on CPUs and the C library is glibc.

    XLA takes the temporaries of a CPU program as one block and frees it when the program has run. glibc gives a block
    of that size back to the system, so every training step starts with memory that the system has to fill with zeros,
    in pages of 4 KiB: a tenth of the step (docs/performance.md). To be called before jax starts its threads, which
    would have heaps of their own, too small for such blocks. Where the environment says something about glibc's malloc
    (GLIBC_TUNABLES, MALLOC_*), nothing is changed.
    """
    global _kept
    if not _kept and _computes_on_cpus() and platform.libc_ver()[0] == "glibc" and not _asked_otherwise():
        mallopt = ctypes.CDLL(None).mallopt
        _kept = all([mallopt(_M_MMAP_MAX, 0), mallopt(_M_TRIM_THRESHOLD, -1), mallopt(_M_ARENA_MAX, 1)])


def describe_memory() -> str:
    """What becomes of it, for the summary of a run."""
    return "kept for the next step" if _kept else "left to the C library"


def _computes_on_cpus() -> bool:
    """Whether jax will, as far as can be known before it has looked for devices."""
    named: str | None = getattr(jax.config, "jax_platforms", None)  # JAX_PLATFORMS, if nothing else was said
    if named:
        return named == "cpu"
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return not plugins and not any(map(importlib.util.find_spec, ("jax_plugins", "libtpu")))


def _asked_otherwise() -> bool:
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    return "glibc.malloc." in tunables or any(name.startswith("MALLOC_") for name in os.environ)
