"""Which checkpoints stay, also after a restart."""

import contextlib
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmt_jax.convert import find_damage, has_checkpoint
from rmt_jax.training.checkpoint import Checkpoints
from rmt_jax.training.config import CheckpointConfig
from rmt_jax.training.state import State


def state(step: int) -> State:
    part = {"params": {"kernel": jnp.full(3, float(step))}, "batch_stats": {}}
    return part | {"ema": part, "opt_state": {}, "step": jnp.array(step)}


def steps(workdir: pathlib.Path) -> list[int]:
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


def test_the_best_outlives_newer_ones_and_a_restart(tmp_path: pathlib.Path) -> None:
    assert not has_checkpoint(tmp_path)
    scores = {1: 50.0, 2: 90.0, 3: math.nan, 4: None, 5: 70.0, 6: None, 7: 80.0}
    known: dict[int, float] = {}
    for step, score in scores.items():
        checkpoints = Checkpoints(tmp_path, CheckpointConfig(keep_last=2), known)  # every save in a run of its own
        checkpoints.save(step, state(step))
        checkpoints.close()
        if score is not None:
            known[step] = score
    assert steps(tmp_path) == [2, 6, 7]
    assert has_checkpoint(tmp_path)


def test_of_equally_good_ones_the_last_is_kept(tmp_path: pathlib.Path) -> None:
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(keep_last=1))
    for step, score in enumerate([50.0, 90.0, 90.0, 60.0, 70.0], start=1):
        checkpoints.save(step, state(step))  # before it is evaluated, as the loop does
        checkpoints.add_score(step, score)
    checkpoints.close()
    assert steps(tmp_path) == [3, 5]


def test_a_saved_step_comes_back_whole(tmp_path: pathlib.Path) -> None:
    checkpoints = Checkpoints(tmp_path, CheckpointConfig())
    checkpoints.save(7, state(7))
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path, CheckpointConfig())
    assert checkpoints.latest_step == 7
    assert (tmp_path / "checkpoints" / "7" / "manifest.json").is_file()
    assert find_damage(tmp_path / "checkpoints" / "7") is None
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), state(0))
    jax.tree.map(np.testing.assert_array_equal, checkpoints.restore(7, abstract), state(7))
    checkpoints.close()


def test_small_arrays_are_saved_without_compiling(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    """Orbax would have every replica write a part, and compile what cuts it out for every shape and device."""
    mesh = jax.sharding.Mesh(jax.devices(), ("data",))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    part = {"params": {"kernel": jax.device_put(np.ones((8, 40), np.float32), everywhere)}, "batch_stats": {}}
    whole = part | {"ema": part, "opt_state": {}, "step": jax.device_put(np.int32(1), everywhere)}
    with jax.log_compiles():
        jnp.ones((3, 17)).sum()
        assert "Compiling" in caplog.text
        caplog.clear()
        with contextlib.closing(Checkpoints(tmp_path, CheckpointConfig())) as checkpoints:
            checkpoints.save(1, whole)
    assert "Compiling" not in caplog.text
    assert steps(tmp_path) == [1]
