"""The same numbers on every mesh and every number of processes, and what a device more costs.

    python -m tests.scale equal        one run as 1 device, four meshes of 8 devices, 2 and 4 processes, compared
    python -m tests.scale weak         images/s with 1, 2, 4 and 8 devices, the same batch for each

Every run is `python main.py` in real processes, on virtual CPU devices. The runs of `equal` have drop path, erasing,
mixing, BatchNorm, two parts a step, weights split over "fsdp", the moving average and an evaluation.
"""

import argparse
import math
import os
import pathlib
import statistics
import sys
import tempfile
from typing import NamedTuple

import jax
import numpy as np

from rmt_jax.data import prepare_digits
from rmt_jax.training.metrics import read_metrics
from tests.compilation import QUICK_FLAGS
from tests.saved import saved_arrays
from tests.training.conftest import ALL_PICTURES, tiny_words
from tests.training.processes import Processes

EPOCHS = 3
STEPS = EPOCHS * (1437 // 256)

# Epsilon 1 makes Adam's step proportional to the gradient. At its usual 1e-8 a parameter whose gradient is rounding
# noise moves by the learning rate all the same, in a direction that is noise: the zero gradients of the key biases.
EQUAL_WORDS = [
    f"--config.epochs={EPOCHS}",
    f"--config.eval_every_epochs={EPOCHS}",
    "--config.log_every_steps=1",
    "--config.model.drop_path=0.3",
    "--config.erasing=0.5",
    "--config.mix.mixup=0.8",
    "--config.mix.cutmix=1.0",
    "--config.mix.group=64",
    "--config.grad_accum_steps=2",
    "--config.optimizer.epsilon=1.0",
    "--config.optimizer.learning_rate=0.1",
    "--config.schedule.warmup_epochs=0",
    "--config.mesh.min_split=64",
]
BOUND = 1e-5  # relative: of losses, and of each array by its largest value, or 1


class Layout(NamedTuple):
    """How a run is spread."""

    name: str
    processes: int
    devices: int  # of each process
    fsdp: int


LAYOUTS = (
    Layout("1 device", 1, 1, 1),
    Layout("8 devices, 8x1", 1, 8, 1),
    Layout("8 devices, 4x2", 1, 8, 2),
    Layout("8 devices, 2x4", 1, 8, 4),
    Layout("8 devices, 1x8", 1, 8, 8),
    Layout("2 processes of 1, 2x1", 2, 1, 1),
    Layout("2 processes of 4, 2x4", 2, 4, 4),
    Layout("4 processes of 1, 4x1", 4, 1, 1),
    Layout("4 processes of 1, 1x4", 4, 1, 4),
)


class Outcome(NamedTuple):
    """What a run ended with."""

    losses: np.ndarray
    evaluation: dict[str, float]
    arrays: dict[str, np.ndarray]


class Difference(NamedTuple):
    """The largest relative differences of a run from another."""

    loss: float
    evaluation_loss: float
    array: float
    path: str  # of that array


def train(layout: Layout, folder: pathlib.Path, words: list[str], environment: dict[str, str]) -> pathlib.Path:
    """The workdir of a run; raises AssertionError with what it wrote where it fails."""
    workdir = folder / layout.name.replace(" ", "_").replace(",", "")
    words = [*words, f"--config.mesh.fsdp={layout.fsdp}"]
    with Processes(workdir, words, environment, count=layout.processes, devices=layout.devices) as run:
        for index, ended in enumerate(run.finish(timeout=900)):
            assert ended.code == 0, f"{layout.name}, process {index}: {ended.err}"
    return workdir


def outcome(workdir: pathlib.Path) -> Outcome:
    """Losses of every step, the evaluation, and all arrays of the last checkpoint."""
    rows = read_metrics(workdir / "metrics.jsonl")
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert len(losses) == STEPS
    evaluation = next(row for row in rows if "val/loss" in row)
    return Outcome(
        np.array(losses),
        {name: evaluation[name] for name in ("val/loss", "val_ema/loss")},
        saved_arrays(workdir, STEPS),
    )


def compare(ours: Outcome, expected: Outcome) -> Difference:
    """How far two runs are apart."""
    assert ours.arrays.keys() == expected.arrays.keys()
    arrays = {
        path: float(np.max(np.abs(array - expected.arrays[path])) / max(1.0, np.max(np.abs(expected.arrays[path]))))
        for path, array in ours.arrays.items()
    }
    worst = max(arrays, key=lambda path: arrays[path])
    return Difference(
        loss=float(np.max(np.abs(ours.losses / expected.losses - 1))),
        evaluation_loss=max(abs(ours.evaluation[name] / expected.evaluation[name] - 1) for name in ours.evaluation),
        array=arrays[worst],
        path=worst,
    )


def print_equal(folder: pathlib.Path, words: list[str], environment: dict[str, str]) -> int:
    """Print a row for each layout; 1 where one is further away than the bound."""
    expected, wrong = None, 0
    print(f"{STEPS} steps, {' '.join(EQUAL_WORDS)}")
    print(f"{'layout':24} {'last loss':>10} {'losses':>9} {'evaluation':>11} {'arrays':>9}  the furthest array")
    for layout in LAYOUTS:
        found = outcome(train(layout, folder, [*words, *EQUAL_WORDS], environment))
        expected = expected or found
        apart = compare(found, expected)
        print(
            f"{layout.name:24} {found.losses[-1]:10.6f} {apart.loss:9.1e} {apart.evaluation_loss:11.1e} "
            f"{apart.array:9.1e}  {apart.path if apart.array else ''}",
            flush=True,
        )
        wrong |= not max(apart.loss, apart.evaluation_loss, apart.array) <= BOUND
    print(f"All within {BOUND:g}: {'no' if wrong else 'yes'}")
    return int(wrong)


def print_weak(folder: pathlib.Path, words: list[str], environment: dict[str, str]) -> int:
    """Print the speed of 1, 2, 4 and 8 devices, each with the same pictures a step, in one process and in several."""
    each, cores = 16, os.cpu_count() or 1
    print(f"{each} pictures a device and step, {cores} cores for all of them")
    print(f"{'layout':24} {'images/s':>9} {'of one device':>14}")
    base = math.nan
    for devices in (1, 2, 4, 8):
        for processes in sorted({1, min(devices, 4)}):
            layout = Layout(f"{processes} processes of {devices // processes}", processes, devices // processes, 1)
            size = [f"--config.batch_size={each * devices}", "--config.mix.group=16", "--config.eval_every_epochs=1000"]
            epochs = max(2, math.ceil(40 * each * devices / 1437))  # 40 steps
            workdir = train(layout, folder, [*words, *size, f"--config.epochs={epochs}"], environment)
            rows = read_metrics(workdir / "metrics.jsonl")
            speeds = [row["train/images_per_second"] for row in rows if "train/images_per_second" in row]
            speed = statistics.median(speeds[len(speeds) // 2 :])
            base = speed if devices == 1 else base
            print(f"{layout.name:24} {speed:9.0f} {speed / base:14.2f}", flush=True)
    return 0


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["equal", "weak"])
    what = parser.parse_args().what
    jax.config.update("jax_platforms", "cpu")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        prepare_digits(str(folder / "data"))
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_DEFAULT_MATMUL_PRECISION": "highest",
            "XLA_FLAGS": QUICK_FLAGS,
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        words = [*tiny_words(str(folder / "data")), *ALL_PICTURES]
        return (print_equal if what == "equal" else print_weak)(folder, words, environment)


if __name__ == "__main__":
    sys.exit(main())
