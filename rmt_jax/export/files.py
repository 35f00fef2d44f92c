"""Files of exported programs, each with a description beside it: StableHLO for JAX and XLA, ONNX for all others."""

import importlib.util
import json
import logging
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

import jax
from jax import export

from rmt_jax.convert import Weights
from rmt_jax.export.onnx_conversion import convert
from rmt_jax.export.program import INPUT, Program, Settings
from rmt_jax.training.metrics import replace_file

STABLEHLO, ONNX = ".stablehlo", ".onnx"
PLATFORMS = ("cpu", "tpu", "cuda")
DESCRIPTION_KEY = "rmt_jax"  # of a model's metadata in ONNX


def check_destination(
    output: pathlib.Path, settings: Settings, *, int8: bool, platforms: Sequence[str] | None, force: bool
) -> None:
    """Everything about a destination that can be known before work starts.

    Raises:
        FileExistsError: something is there, and must not be replaced.
        ImportError: the packages for the format are missing.
        ValueError: a name that does not say which format, a folder that is not there, or options that do not go with
            the format.
    """
    if output.suffix not in (STABLEHLO, ONNX):
        raise ValueError(f"{output}: give a name that ends in {STABLEHLO} or {ONNX}, which says the format.")
    if not output.absolute().parent.is_dir():
        raise ValueError(f"{output}: there is no directory {output.parent}.")
    if output.is_dir() or (output.exists() and not force):
        raise FileExistsError(f"{output} exists: give another name" + ("." if output.is_dir() else ", or --force."))
    _require(output)
    if output.suffix == ONNX:
        if settings.dtype != "float32":
            raise ValueError(
                f"--dtype={settings.dtype}: onnxruntime lacks most operations in it. Export float32, or {STABLEHLO}."
            )
        if platforms is not None:
            raise ValueError(f"--platforms is of {STABLEHLO}: what an ONNX runs on is up to its runtime.")
        return
    if unknown := sorted(set(platforms or ()) - set(PLATFORMS)):
        raise ValueError(f"--platforms {' '.join(unknown)}: expected any of {', '.join(PLATFORMS)}.")
    if int8:
        raise ValueError(f"--int8 is of {ONNX}: StableHLO is written in the type that the model computes in.")


def description_file(output: pathlib.Path) -> pathlib.Path:
    """Where the description of a file is: beside it, NAME.onnx.json."""
    return output.with_name(f"{output.name}.json")


def write_stablehlo(
    weights: Weights, settings: Settings, output: pathlib.Path, platforms: Sequence[str] = PLATFORMS
) -> Program:
    """Write a program that `jax.export.deserialize` reads, in other processes and versions too; returns it.

    Args:
        weights: of a classifier, a segmentor or a backbone.
        settings: of the program.
        output: the file.
        platforms: that it can be run on, any of `PLATFORMS`.

    Raises:
        ImportError, OSError: a package is missing; it cannot be written.
        ValueError: see `Program`.
    """
    _require(output)
    on_gpus_alone = tuple(platforms) == ("cuda",)
    program = Program(weights, settings, depthwise="convolution" if on_gpus_alone else "shifts")
    exported = export.export(jax.jit(program), platforms=platforms)(program.images)
    description = program.describe() | {
        "format": "stablehlo",
        "platforms": list(exported.platforms),
        "calling_convention_version": exported.calling_convention_version,
    }
    _write(output, bytes(exported.serialize()), description)
    return program


def write_onnx(weights: Weights, settings: Settings, output: pathlib.Path, *, int8: bool = False) -> Program:
    """Write a model of ONNX, whose metadata hold the description too; returns the program that it is of.

    Args:
        weights: of a classifier, a segmentor or a backbone.
        settings: of the program, float32.
        output: the file.
        int8: quantise the weights of linear layers, and what goes into them when the model runs.

    Raises:
        ImportError, OSError: packages are missing; it cannot be written.
        ValueError: see `Program`; a size whose retention is computed in a loop.
    """
    _require(output)
    program = Program(weights, settings, depthwise="convolution")
    try:
        model = convert(program, program.images, INPUT, list(program.outputs))
    except NotImplementedError as error:
        raise ValueError(
            f"This cannot be written as ONNX: {error}. Smaller pictures may do, whose retention needs no loop; a name "
            f"that ends in {STABLEHLO} takes every size."
        ) from error
    description = program.describe() | {"format": "onnx", "opset": model.opset_import[0].version, "int8": int8}
    if int8:
        model = _quantised(model)
    entry = model.metadata_props.add()
    entry.key, entry.value = DESCRIPTION_KEY, json.dumps(description)
    _write(output, model.SerializeToString(), description)
    return program


def _quantised(model: Any) -> Any:
    """With int8 weights in linear layers, a scale for each column."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "int8.onnx"
        logging.disable(logging.WARNING)  # it recommends to work out shapes first, which are all here
        try:
            quantize_dynamic(
                model, path, op_types_to_quantize=["MatMul"], per_channel=True, weight_type=QuantType.QInt8
            )
        finally:
            logging.disable(logging.NOTSET)
        return onnx.load(path)


def _write(output: pathlib.Path, content: bytes, description: dict[str, Any]) -> None:
    replace_file(output, content)
    replace_file(description_file(output), (json.dumps(description, indent=2) + "\n").encode())


def _require(output: pathlib.Path) -> None:
    packages = ("onnx", "onnxruntime") if output.suffix == ONNX else ("flatbuffers",)  # what jax.export writes with
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise ImportError(f"Writing {output} needs {' and '.join(missing)}: pip install 'rmt-jax[export]'.")
