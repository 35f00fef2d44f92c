"""A few real training steps in a temporary folder, saved and restored: the last check of `rmt doctor`."""

import contextlib
import dataclasses
import pathlib
import tempfile
import time
from collections.abc import Iterator

import jax
import numpy as np

from rmt_jax.training.checkpoint import Checkpoints
from rmt_jax.training.config import CheckpointConfig, Config, parse
from rmt_jax.training.doctor import Finding
from rmt_jax.training.evaluation import put_batch
from rmt_jax.training.setup import initial_state, prepare

STEPS = 5

# RMT-nano at its smallest, since what is tried is the machine.
_DIGITS = {
    "epochs": 1,
    "model": {"name": "rmt_nano", "dtype": "float32", "architecture": {"depths": (1, 1, 1, 1)}},
    "data": {"name": "digits", "eval_split": "test", "image_size": 32},
}


def smoke_run(config: Config | None) -> Iterator[Finding]:
    """Five steps of a recipe with a small batch, or of RMT-nano on the digits where None."""
    with tempfile.TemporaryDirectory(prefix="rmt_doctor_") as name:
        folder = pathlib.Path(name)
        try:
            yield from _run(_small(config or parse(_DIGITS), folder if config is None else None), folder)
        except (ValueError, OSError, RuntimeError) as error:
            yield Finding("problem", f"smoke run: {error}")


def _small(config: Config, data: pathlib.Path | None) -> Config:
    batch = 2 * jax.device_count()
    directory = config.data.dir if data is None else str(data)
    return dataclasses.replace(
        config,
        batch_size=batch,
        eval_batch_size=batch,
        reference_batch_size=batch,
        grad_accum_steps=1,
        init_from=None,
        mix=dataclasses.replace(config.mix, group=batch),
        distill=dataclasses.replace(config.distill, teacher=None),
        data=dataclasses.replace(config.data, dir=directory, num_workers=0, repeats=1),
    )


def _run(config: Config, folder: pathlib.Path) -> Iterator[Finding]:
    setup = prepare(config)
    state, losses, started = initial_state(setup), [], time.monotonic()
    with contextlib.closing(setup.train_loader.batches(0, STEPS)) as batches:
        for step, local in enumerate(batches):
            state, metrics = setup.train_step(state, put_batch(local, setup.batch_sharding))
            losses.append(float(metrics["loss"]))
            if step == 0:
                compiled = time.monotonic()
    speed = (STEPS - 1) * config.batch_size / (time.monotonic() - compiled)
    what = f"smoke run: {STEPS} steps of {config.model.name} on {config.data.name}, batch {config.batch_size}, "
    what += (
        f"loss {losses[0]:.4f} to {losses[-1]:.4f}, {speed:.1f} images/s, first step after {compiled - started:.0f} s"
    )
    yield Finding("ok", what) if np.isfinite(losses).all() else Finding("problem", what, "the loss is not finite")
    with contextlib.closing(Checkpoints(folder / "run", CheckpointConfig())) as checkpoints:
        checkpoints.save(STEPS, state)
    with contextlib.closing(Checkpoints(folder / "run", CheckpointConfig())) as checkpoints:
        restored = checkpoints.restore(STEPS, setup.program.abstract_state)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), state, restored)
    if all(jax.tree.leaves(same)):
        yield Finding("ok", "smoke run: saved and restored, the same bits")
    else:
        yield Finding("problem", "smoke run: what was restored differs from what was saved")
