"""Which checkpoints stay, also after a restart."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from rmt_jax.convert import has_checkpoint
from rmt_jax.training.checkpoint import BEST_METRIC, Checkpoints
from rmt_jax.training.config import CheckpointConfig
from rmt_jax.training.state import State


def state(step: int) -> State:
    part = {"params": {"kernel": jnp.full(3, float(step))}, "batch_stats": {}}
    return part | {"ema": part, "opt_state": {}, "step": jnp.array(step)}


def steps(workdir: pathlib.Path) -> list[int]:
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


def test_the_best_outlives_newer_ones_and_a_restart(tmp_path: pathlib.Path) -> None:
    assert not has_checkpoint(tmp_path)
    scores = {1: 50.0, 2: 90.0, 3: 60.0, 4: None, 5: 70.0, 6: None, 7: 80.0}
    for step, score in scores.items():
        checkpoints = Checkpoints(tmp_path, CheckpointConfig(keep_last=2))  # every save in a run of its own
        checkpoints.save(step, state(step), None if score is None else {BEST_METRIC: score})
        checkpoints.close()
    assert steps(tmp_path) == [2, 6, 7]
    assert has_checkpoint(tmp_path)


def test_a_saved_step_comes_back_whole(tmp_path: pathlib.Path) -> None:
    checkpoints = Checkpoints(tmp_path, CheckpointConfig())
    checkpoints.save(7, state(7), None)
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path, CheckpointConfig())
    assert checkpoints.latest_step == 7
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), state(0))
    jax.tree.map(np.testing.assert_array_equal, checkpoints.restore(7, abstract), state(7))
    checkpoints.close()
