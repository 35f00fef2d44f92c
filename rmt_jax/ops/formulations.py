"""Which formulation of an operation a platform uses: one table of measured choices (docs/performance.md)."""

import contextlib
import importlib.util
import os
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
from jax.sharding import AxisType

ENVIRONMENT_VARIABLE = "RMT_JAX_FORMULATIONS"

# operation -> platform -> formulation; "default" is for platforms that are not named.
FORMULATIONS: Mapping[str, Mapping[str, str]] = {
    # The heart of a retention layer: products of all pictures at once, a Pallas kernel for maps that fit into a TPU's
    # vector memory, or Pallas kernels for GPUs by Triton.
    "retention": {"tpu": "kernel", "gpu": "triton", "default": "at_once"},
    # Columns of query and key weights from pairs to halves: slices with strides put side by side, or a transpose, with
    # which TPUs need less memory.
    "halves": {"tpu": "transpose", "default": "strides"},
    # Sums over pictures and positions in gradients: one reduction, or parts of the maps added up over and over,
    # which XLA's CPU backend does 20 times faster.
    "sums": {"cpu": "by_parts", "default": "reduction"},
    # A depthwise convolution: products with every tap's view of the map added up, XLA's grouped convolution (cuDNN's on
    # GPUs), or Pallas kernels by Triton.
    "depthwise": {"gpu": "triton", "default": "shifts"},
    # LayerNorm's gradients: by XLA, or a Pallas kernel by Triton.
    "layer_norm": {"gpu": "triton", "default": "plain"},
    # The feed-forward branch of a block: its layers one after the other, or a Pallas kernel for maps that fit.
    "ffn": {"tpu": "kernel", "default": "layers"},
    # The blocks of a stage: every block on all pictures, or all blocks on a few pictures at a time, so that what they
    # compute stays in a CPU's cache.
    "blocks": {"cpu": "few_pictures", "default": "all_pictures"},
    # The blocks of a stage, which are one program: called for each of them, so that XLA compiles it once, or put in
    # where they are.
    "block_calls": {"cpu": "called", "default": "inlined"},
    # What is used several times: behind an optimization barrier, or left to XLA, which on CPUs would compute it again
    # for each.
    "reuse": {"cpu": "barrier", "default": "by_compiler"},
}
_CHOICES: Mapping[str, frozenset[str]] = {
    "retention": frozenset({"at_once", "kernel", "triton"}),
    "halves": frozenset({"strides", "transpose"}),
    "sums": frozenset({"by_parts", "reduction"}),
    "depthwise": frozenset({"convolution", "shifts", "triton"}),
    "layer_norm": frozenset({"plain", "triton"}),
    "ffn": frozenset({"kernel", "layers"}),
    "blocks": frozenset({"few_pictures", "all_pictures"}),
    "block_calls": frozenset({"called", "inlined"}),
    "reuse": frozenset({"barrier", "by_compiler"}),
}
# What stands in for Triton where it is not to be had, and for all that works on the pictures of one device where the
# compiler splits them over several: it cannot split a kernel, and pictures that are added up would be on other devices.
_IN_PLACE_OF: Mapping[tuple[str, str], str] = {
    ("retention", "kernel"): "at_once",
    ("retention", "triton"): "at_once",
    ("sums", "by_parts"): "reduction",
    ("depthwise", "triton"): "convolution",
    ("layer_norm", "triton"): "plain",
    ("ffn", "kernel"): "layers",
    ("blocks", "few_pictures"): "all_pictures",
    ("block_calls", "called"): "inlined",
}

Overrides = tuple[tuple[str, str], ...]  # (operation, formulation)


class _Asked(NamedTuple):
    platform: str | None = None
    choices: Overrides = ()


_ASKED = jax.make_user_context(_Asked())  # for another value `jax.jit` traces anew


@contextlib.contextmanager
def asking(platform: str | None = None, **choices: str) -> Iterator[None]:
    """For functions traced inside: a formulation for an operation, unless the environment asks for another.

    Args:
        platform: what they are compiled for, where that is not jax.default_backend().
        **choices: formulations by operation; for others it stays as outside.
    """
    outside = _ASKED.value
    choices = dict(outside.choices) | choices
    with _ASKED(_Asked(platform or outside.platform, tuple(choices.items()))):
        yield


def overrides() -> Overrides:
    """What is asked for in place of the table's choices.

    First by the environment variable RMT_JAX_FORMULATIONS ("retention=at_once,sums=reduction"), then by `asking`.

    Raises:
        ValueError: an operation or a formulation that is not in the table.
    """
    words = [word.strip() for word in os.environ.get(ENVIRONMENT_VARIABLE, "").split(",") if word.strip()]
    found = dict(_ASKED.value.choices)
    for word in words:
        operation, _, choice = word.partition("=")
        if choice not in _CHOICES.get(operation, ()):
            known = "; ".join(f"{name}={'|'.join(sorted(choices))}" for name, choices in _CHOICES.items())
            raise ValueError(f"{ENVIRONMENT_VARIABLE}: {word!r} is none of {known}.")
        found[operation] = choice
    return tuple(found.items())


def chosen(operation: str, platform: str) -> str:
    """The formulation of an operation on a platform (cpu, gpu, tpu): what is asked for, or the table's."""
    asked = dict(overrides()).get(operation)
    choice = _of_table(operation, platform) if asked is None else _where_split(operation, asked)
    # In a program that is called, XLA's CPU backend takes 30 times as long for a grouped convolution's gradients.
    slow = choice == "called" and chosen("depthwise", platform) == "convolution"
    return "inlined" if slow else choice


def _of_table(operation: str, platform: str) -> str:
    choices = FORMULATIONS[operation]
    choice = choices.get(platform, choices["default"])
    if choice == "triton" and not _triton_works():
        return _IN_PLACE_OF[operation, choice]
    return _where_split(operation, choice)


def _where_split(operation: str, choice: str) -> str:
    return _IN_PLACE_OF.get((operation, choice), choice) if _compiler_splits() else choice


def _compiler_splits() -> bool:
    """Whether what is being traced is for several devices, over which the compiler is to split it, as it does with all
    but the stages of a model (`PerDevice`).
    """
    mesh = jax.sharding.get_abstract_mesh()
    return any(kind is AxisType.Auto and size > 1 for kind, size in zip(mesh.axis_types, mesh.axis_sizes, strict=True))


def _triton_works() -> bool:
    """Whether jax has it (0.11 says that it will go), and the GPUs here, if any, are Amperes or later."""
    if importlib.util.find_spec("jax.experimental.pallas.triton") is None:
        return False
    if jax.default_backend() != "gpu":
        return True
    capability = str(getattr(jax.local_devices()[0], "compute_capability", ""))
    major, dot, _ = capability.partition(".")
    return not dot or int(major) >= 8  # AMD's GPUs have names such as gfx942


def chosen_here(operation: str) -> str:
    """The formulation of an operation in what is being traced.

    Where no program asks for a platform, that of `jax.default_device` counts, or else the default backend's.
    """
    return chosen(operation, _ASKED.value.platform or _default_platform())


def _default_platform() -> str:
    device = jax.config.jax_default_device  # type: ignore[attr-defined]  # set when jax is imported
    if device is None:
        return jax.default_backend()
    return device if isinstance(device, str) else str(device.platform)


def describe(platform: str) -> str:
    """All choices for a platform in one line, for the summary of a run."""
    asked = os.environ.get(ENVIRONMENT_VARIABLE)
    choices = ", ".join(f"{operation} {chosen(operation, platform)}" for operation in FORMULATIONS)
    return f"{choices} ({ENVIRONMENT_VARIABLE}={asked})" if asked else choices
