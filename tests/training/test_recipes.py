"""The ImageNet recipes on a stand-in of ImageNet, in its own forms."""

import dataclasses
import hashlib
import pathlib
import shutil

import jax
import numpy as np
import pytest

from rmt_jax.data import DataConfig, TrainLoader, open_source
from rmt_jax.training.command_line import load_config
from rmt_jax.training.config import parse
from rmt_jax.training.evaluation import put_batch
from rmt_jax.training.metrics import read_metrics
from rmt_jax.training.setup import prepare
from tests.standin import Pictures
from tests.training.test_program import finish, start

StandIn = tuple[pathlib.Path, dict[str, Pictures]]

SOURCES = {
    "tfds": ("imagenet2012", "tfds", "validation"),
    "tars": ("tar", "tars", "validation"),
    "class_tars": ("tar", "class_tars", "val"),
    "folder": ("folder", "folder", "val"),
}
# One or two blocks a stage: compiling all of them takes minutes, and tests/test_parity.py trains whole models.
SMALL = (
    "--config.batch_size=16",
    "--config.mix.group=8",
    "--config.data.image_size=64",
    "--config.data.num_workers=0",
    "--config.model.architecture.depths=(1, 1, 2, 1)",
)


def words(form: str, directory: pathlib.Path, maps: pathlib.Path | None = None) -> list[str]:
    """A small run on one form of the stand-in."""
    name, folder, split = SOURCES[form]
    return [
        *SMALL,
        f"--config.data.name={name}",
        f"--config.data.dir={directory / folder}",
        f"--config.data.eval_split={split}",
        "--config.data.max_unreadable=0.1",
        *(["--config.data.repeat_replicas=4"] if maps is None else [f"--config.data.token_labels.file={maps}"]),
    ]


def data_config(config: str, *arguments: str) -> DataConfig:
    return parse(load_config(config, arguments)).data


def digests(config: DataConfig, processes: int = 1, start_step: int = 0, stop_step: int = 6) -> list[str]:
    """A hash of everything in each global batch, put together from what the processes yield."""
    source = open_source(config, config.train_split)
    loaders = [
        TrainLoader(source, config, batch_size=16, seed=0, process_index=index, process_count=processes)
        for index in range(processes)
    ]
    found = []
    for parts in zip(*(loader.batches(start_step, stop_step) for loader in loaders), strict=True):
        batch = {key: np.concatenate([part[key] for part in parts]) for key in sorted(parts[0])}
        found.append(hashlib.sha256(b"".join(value.tobytes() for value in batch.values())).hexdigest())
    return found


@pytest.mark.parametrize("recipe", ["", ":token_label"])
def test_a_batch_is_a_function_of_seed_and_step(recipe: str, standin: StandIn, standin_maps: pathlib.Path) -> None:
    """Past an epoch: with other processes, workers and threads, from the middle, and from another form of the data."""
    config = f"configs/rmt_s.py{recipe}"
    maps = standin_maps if recipe else None
    folder = data_config(config, *words("folder", standin[0], maps))
    expected = digests(folder)
    assert len(set(expected)) == 6
    for processes, start_step, changes in ((2, 0, {}), (4, 3, {"num_threads": 1}), (1, 0, {"num_workers": 2})):
        found = digests(dataclasses.replace(folder, **changes), processes, start_step)
        assert found == expected[start_step:], (processes, changes)
    assert digests(data_config(config, *words("class_tars", standin[0], maps))) == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    "config", [*(f"rmt_{size}.py" for size in "tsbl"), *(f"rmt_{size}.py:token_label" for size in "sbl")]
)
def test_every_recipe_makes_a_training_step(config: str, standin: StandIn, standin_maps: pathlib.Path) -> None:
    """Traced on a real batch, not compiled."""
    starred = config.endswith("token_label")
    arguments = words("folder", standin[0], standin_maps if starred else None)
    setup = prepare(parse(load_config(f"configs/{config}", arguments)))
    batch = put_batch(next(setup.train_loader.batches(0, 1)), setup.batch_sharding)
    assert ("label_scores" in batch) == starred
    state, metrics = setup.program.train_step.eval_shape(setup.program.abstract_state, batch, {})
    assert metrics["loss"].shape == ()
    before, after = (
        jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree) for tree in (setup.program.abstract_state, state)
    )
    assert before == after


@pytest.mark.slow
@pytest.mark.parametrize(("config", "form", "workers"), [("rmt_t.py", "tfds", 2), ("rmt_s.py:token_label", "tars", 0)])
def test_recipes_train(
    config: str,
    form: str,
    workers: int,
    standin: StandIn,
    standin_maps: pathlib.Path,
    tmp_path: pathlib.Path,
    environment: dict[str, str],
) -> None:
    arguments = words(form, standin[0], standin_maps if config.endswith("token_label") else None)
    arguments += [f"--config=configs/{config}", "--config.epochs=1", "--config.log_every_steps=1"]
    code, out, err = finish(start(tmp_path, [*arguments, f"--config.data.num_workers={workers}"], environment))
    assert code == 0, err
    losses = [row["train/loss"] for row in read_metrics(tmp_path / "metrics.jsonl") if "train/loss" in row]
    assert len(losses) == 3
    # Fresh weights; a starred model has half the loss of its tokens beside the picture's.
    expected = np.log(1000) * (1.5 if config.endswith("token_label") else 1)
    np.testing.assert_allclose(losses, expected, rtol=0.15)
    # One of the stand-in's is cut off. Without repeats the only epoch comes by it.
    assert ("Unreadable pictures of" in out) == config.endswith("token_label")
    shutil.rmtree(tmp_path / "checkpoints")
