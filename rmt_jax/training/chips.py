"""TPU chips and slices: what `rmt compile` compares a compiled step with.

Figures are those of Google's documentation of each generation (cloud.google.com/tpu/docs), but for the usable memory,
which is the limit that the compiler names when a program does not fit. A chip's part of the data centre's network is
6.4 and 25.6 Tbit/s for the 256 chips of a v5e and a v6e pod (docs/v5e, docs/v6e: as much as the cards of a host of 8
chips, 2 x 100 and 4 x 200 Gbit/s) and 50 Gbit/s of v5p (docs/v5p); of v4 the documentation gives none.
"""

import dataclasses
import os
import re
from collections.abc import Sequence

import jax
from jax.experimental import topologies

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip.

    Attributes:
        name: of the generation.
        memory: bytes that a program can use.
        flops: bfloat16 operations a second, additions and multiplications counted apart.
        bandwidth: bytes a second between memory and chip.
        links: bytes a second between the chip and all its neighbours of the slice.
        network: bytes a second between the chip and other slices, its part of what its host has; None is not known.
        dimensions: of the torus that its slices are parts of.
        cores: libtpu's name for how its cores are used; of v4 it would offer each of the two as a device.
    """

    name: str
    memory: float
    flops: float
    bandwidth: float
    links: float
    network: float | None
    dimensions: int
    cores: str = "default"


CHIPS = {
    "v4": Chip(
        "v4", 30.75 * GIB, flops=275e12, bandwidth=1228e9, links=300e9, network=None, dimensions=3, cores="megacore"
    ),
    "v5e": Chip("v5e", 15.75 * GIB, flops=197e12, bandwidth=819e9, links=200e9, network=3.125e9, dimensions=2),
    "v5p": Chip("v5p", 95.74 * GIB, flops=459e12, bandwidth=2765e9, links=600e9, network=6.25e9, dimensions=3),
    "v6e": Chip("v6e", 31.25 * GIB, flops=918e12, bandwidth=1638e9, links=448e9, network=12.5e9, dimensions=2),
}

# As jax names the devices of this machine.
_KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
}

# By dimensions: the form of a slice's shape, and one. In larger ones of two dimensions libtpu ends the process.
_SHAPES = {2: ("AxB of at most 16x16", "4x8"), 3: ("AxBxC", "4x4x8")}
_LARGEST_FLAT = 16

# Names by which slices are rented, and how their chips are wired. v4 and v5p names count cores, two a chip.
_FLAT = {4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_CUBIC = {8: "2x2x1", 16: "2x2x2", 32: "2x2x4", 64: "2x4x4", 128: "4x4x4", 256: "4x4x8", 512: "4x8x8"}
SLICES = {
    f"{chip}-{count}": f"{chip}:{shape}"
    for chip, shapes in (("v4", _CUBIC), ("v5e", _FLAT), ("v5p", _CUBIC), ("v6e", _FLAT))
    for count, shape in shapes.items()
}

# Only the compiler of libtpu is wanted: not the chips of this machine, nor what libtpu says when it finds none.
_COMPILER_ONLY = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}


def find_devices() -> list[jax.Device]:
    """All that jax computes on.

    Raises:
        ValueError: it finds none.
    """
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:  # an AssertionError without words where there is no CUDA
        asked = f" for JAX_PLATFORMS={os.environ['JAX_PLATFORMS']}" if os.environ.get("JAX_PLATFORMS") else ""
        reason = (str(error).splitlines() or ["no such platform here"])[0]
        raise ValueError(
            f"jax finds no device{asked}: {reason}. Unset JAX_PLATFORMS to compute on what there is, or install what "
            f"the accelerator needs: pip install 'rmt-jax[tpu]' or 'rmt-jax[cuda]'"
        ) from error


def chip_of(devices: Sequence[jax.Device]) -> Chip | None:
    """The chip of devices of this machine, None of other devices than TPUs that are known here."""
    name = _KINDS.get(devices[0].device_kind)
    return CHIPS[name] if name else None


def open_topology(name: str, slices: int = 1) -> tuple[Chip, list[jax.Device]]:
    """The chip and all devices of TPU slices that need not be here.

    Args:
        name: GENERATION:SHAPE such as v5e:16x16, or the name of a slice such as v5e-256.
        slices: how many of them, joined by the data centre's network.

    Raises:
        ValueError: no such generation or shape, or libtpu is not installed.
    """
    layout = SLICES.get(name, name)
    chip = CHIPS.get(layout.partition(":")[0])
    if chip is None or not re.fullmatch(r"\w+:\d+x\d+(x\d+)?", layout):
        raise ValueError(
            f"--topology={name}: expected GENERATION:SHAPE such as v5e:16x16 with one of {', '.join(CHIPS)}, or the "
            f"name of a slice such as v4-32, v5e-256, v5p-128 or v6e-64."
        )
    _check_shape(name, chip, layout.partition(":")[2])
    for variable, value in _COMPILER_ONLY.items():
        os.environ.setdefault(variable, value)
    try:
        topology = topologies.get_topology_desc(
            platform="tpu", topology_name=layout, num_slices=slices, chip_config_name=chip.cores
        )
    except Exception as error:  # jax raises several kinds: no libtpu, and shapes that it refuses
        hint = " Compiling for TPUs needs libtpu: pip install 'rmt-jax[tpu]'." if "libtpu" in str(error).lower() else ""
        raise ValueError(f"--topology={name} cannot be opened: {str(error).splitlines()[0]}.{hint}") from error
    return chip, list(topology.devices)


def _check_shape(name: str, chip: Chip, shape: str) -> None:
    """Raises ValueError for what libtpu opens, but ends the process over when it compiles."""
    sizes = [int(size) for size in shape.split("x")]
    if len(sizes) != chip.dimensions or (chip.dimensions == 2 and max(sizes) > _LARGEST_FLAT):
        form, example = _SHAPES[chip.dimensions]
        raise ValueError(f"--topology={name}: {chip.name} has slices {form}, such as {chip.name}:{example}.")
