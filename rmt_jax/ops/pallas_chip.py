"""The vector memory of the TPU that is compiled for."""

from jax.experimental.pallas import tpu as pltpu

MIB = 2**20
_LATER_CHIPS = 64 * MIB


def chip_memory() -> int:
    """Bytes of vector memory of a core of the chip that is compiled for: 16 MiB on v4, 64 or 128 on later ones."""
    try:
        return pltpu.get_tpu_info().vmem_capacity_bytes
    except ValueError:  # no TPU
        return _LATER_CHIPS
