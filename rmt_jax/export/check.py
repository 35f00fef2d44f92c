"""Proof of an export: photographs through the file, in the runtime that it is for, and through the model."""

import dataclasses
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from rmt_jax.data.resize import resize_image
from rmt_jax.export.files import ONNX
from rmt_jax.export.program import INPUT, Program, Settings
from rmt_jax.training.augment_sheet import sample_photographs

Outputs = dict[str, np.ndarray]

# How far outputs may be from the model's, as a share of their largest magnitude.
BOUNDS = {"float32": 2e-5, "bfloat16": 5e-2}
INT8_BOUND = 0.1

# A process that has JAX and the file, and nothing of this package.
_RUN_STABLEHLO = """\
import sys
import jax
import numpy as np
from jax import export

path, images, names, results = sys.argv[1:]
exported = export.deserialize(bytearray(open(path, "rb").read()))
outputs = exported.call(np.load(images))
np.savez(results, **dict(zip(names.split(","), map(np.asarray, outputs))))
"""


class Check(NamedTuple):
    """How one output of the file compares to the model's.

    Attributes:
        batch: pictures in the call.
        output: its name.
        difference: the largest, as a share of the output's largest magnitude.
        same_class: share of pictures, or of positions, whose largest class is the same; None of maps.
    """

    batch: int
    output: str
    difference: float
    same_class: float | None


def bound(settings: Settings, *, int8: bool) -> float:
    """What is asked of a file."""
    return INT8_BOUND if int8 else BOUNDS[settings.dtype]


def check_file(path: pathlib.Path, program: Program) -> list[Check]:
    """Run the file, a StableHLO in a fresh process on the CPU, an ONNX in onnxruntime, and compare it with the model.

    The model computes in float32, whatever the file does. A call that takes any number of pictures is given one and
    four.

    Raises:
        ValueError: the file does not run.
    """
    size = program.settings.batch_size
    batches = (1, 4) if size is None else (size,)
    images = program.prepare(photographs(batches[-1], program.images.shape[1:3]))
    model = Program(program.weights, dataclasses.replace(program.settings, dtype="float32"))
    expected = model_outputs(model, images)
    run = run_onnx if path.suffix == ONNX else run_stablehlo
    checks = []
    for batch in batches:
        found = run(path, images[:batch], list(program.outputs))
        first = {name: array[:batch] for name, array in expected.items()}
        checks += compare(found, first, classes=program.task != "backbone")
    return checks


def photographs(count: int, size: tuple[int, int]) -> np.ndarray:
    """Scikit-learn's two, and the same mirrored, over and over: uint8 [count height width 3]."""
    pictures = [resize_image(np.asarray(photograph), size) for photograph in sample_photographs()]
    pictures += [picture[:, ::-1] for picture in pictures]
    return np.stack([pictures[i % len(pictures)] for i in range(count)])


def model_outputs(model: Program, images: np.ndarray) -> Outputs:
    """What JAX computes here, with products in the highest precision."""
    with jax.default_matmul_precision("highest"):
        return dict(zip(model.outputs, map(np.asarray, jax.jit(model)(images)), strict=True))


def run_onnx(path: pathlib.Path, images: np.ndarray, names: Sequence[str]) -> Outputs:
    """In onnxruntime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return dict(zip(names, session.run(list(names), {INPUT: images}), strict=True))


def run_stablehlo(path: pathlib.Path, images: np.ndarray, names: Sequence[str]) -> Outputs:
    """In a Python process of its own, on the CPU.

    Raises:
        ValueError: it fails there.
    """
    with tempfile.TemporaryDirectory() as folder:
        pictures, results = pathlib.Path(folder) / "images.npy", pathlib.Path(folder) / "results.npz"
        np.save(pictures, images)
        arguments = [sys.executable, "-c", _RUN_STABLEHLO, str(path), str(pictures), ",".join(names), str(results)]
        done = subprocess.run(arguments, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True)
        if done.returncode:
            raise ValueError(f"{path} does not run in a process of its own:\n{done.stderr.strip()}")
        with np.load(results) as arrays:
            return {name: arrays[name] for name in names}


def compare(found: Outputs, expected: Mapping[str, np.ndarray], *, classes: bool) -> list[Check]:
    """One output after the other; `classes` says whether their last axis is classes."""
    checks = []
    for name, array in expected.items():
        if found[name].shape != array.shape:
            raise ValueError(f"The output {name!r} is {found[name].shape}, the model's {array.shape}.")
        scale = max(float(np.abs(array).max()), float(np.finfo(np.float32).tiny))
        same = float(np.mean(found[name].argmax(-1) == array.argmax(-1))) if classes else None
        checks.append(Check(len(array), name, float(np.abs(found[name] - array).max()) / scale, same))
    return checks
