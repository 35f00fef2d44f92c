"""Exported files measured, as one table: size, distance from the model, speed beside JAX.

    python -m tests.exports [MODEL...]

For every model (all seven by default), fresh weights at 224x224 as ONNX, ONNX with --int8 and StableHLO in both types.
Times are CPU seconds of all threads, of batches of four, the least of five calls: other work on the machine counts
little in them. Of StableHLO they are the model's own in JAX.
"""

import pathlib
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import onnxruntime
from flax import nnx

from rmt_jax.convert import Weights
from rmt_jax.export import Settings, check_file, write_onnx, write_stablehlo
from rmt_jax.export.check import photographs
from rmt_jax.export.program import INPUT, Program
from rmt_jax.models import create_model, list_models
from rmt_jax.models.arrays import flat_paths, model_arrays

BATCH, CALLS = 4, 5


def fresh(name: str) -> Weights:
    model = create_model(name, rngs=nnx.Rngs(0))
    arrays = {path: np.asarray(array) for path, array in flat_paths(model_arrays(model))}
    return Weights(name, "classification", model.config, arrays)


def milliseconds(run: Callable[[], Any]) -> float:
    """CPU time of a picture."""
    run()
    seconds = []
    for _ in range(CALLS):
        started = time.process_time()
        run()
        seconds.append(time.process_time() - started)
    return 1000 * min(seconds) / BATCH


def onnx_time(path: pathlib.Path, program: Program) -> float:
    options, images = onnxruntime.SessionOptions(), program.prepare(photographs(BATCH, (224, 224)))
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # waiting is no work
    session = onnxruntime.InferenceSession(path, options)
    return milliseconds(lambda: session.run(None, {INPUT: images}))


def jax_time(program: Program) -> float:
    run, images = jax.jit(program), program.prepare(photographs(BATCH, (224, 224)))
    return milliseconds(lambda: jax.block_until_ready(run(images)))


def main(names: list[str]) -> None:
    print("| model | file | size | largest difference | same class | CPU time a picture |\n|---|---|---|---|---|---|")
    for name in names or [name for name in list_models() if name != "rmt_nano"]:
        weights = fresh(name)
        with tempfile.TemporaryDirectory() as folder:
            for form in ("ONNX", "ONNX, int8", "StableHLO", "StableHLO, bfloat16"):
                path = pathlib.Path(folder) / ("model.onnx" if form.startswith("ONNX") else "model.stablehlo")
                if path.suffix == ".onnx":
                    program = write_onnx(weights, Settings(), path, int8=form.endswith("int8"))
                    cost = onnx_time(path, program)
                else:
                    settings = Settings(dtype="bfloat16" if form.endswith("bfloat16") else "float32")
                    program = write_stablehlo(weights, settings, path)
                    cost = jax_time(program)
                checks = check_file(path, program)
                difference, same = max(c.difference for c in checks), min(c.same_class or 0 for c in checks)
                size = path.stat().st_size / 1e6
                row = f"| {name} | {form} | {size:.1f} MB | {difference:.1e} | {100 * same:.0f} % | {cost:.0f} ms |"
                print(row, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
