"""Models as files that run without this package: StableHLO and ONNX."""

from rmt_jax.export.check import Check, bound, check_file
from rmt_jax.export.files import ONNX, PLATFORMS, STABLEHLO, check_destination, write_onnx, write_stablehlo
from rmt_jax.export.program import Program, Settings

__all__ = [
    "ONNX",
    "PLATFORMS",
    "STABLEHLO",
    "Check",
    "Program",
    "Settings",
    "bound",
    "check_destination",
    "check_file",
    "write_onnx",
    "write_stablehlo",
]
