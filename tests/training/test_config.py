"""Configuration: every file parses, every mistake is named."""

import pathlib
from typing import Any

import pytest

from rmt_jax.tasks import MixConfig
from rmt_jax.training.command_line import load_config
from rmt_jax.training.config import Config, parse
from tests.training.conftest import REPOSITORY


@pytest.mark.parametrize("path", sorted((REPOSITORY / "configs").glob("*.py")), ids=lambda path: path.stem)
def test_every_config_file_parses(path: pathlib.Path) -> None:
    config = parse(load_config(str(path)))
    assert isinstance(config, Config)
    assert config.model.name in {"rmt_nano", "rmt_s", path.stem}


def test_defaults_are_the_recipe_of_rmt_s() -> None:
    file, default = parse(load_config("configs/rmt_s.py")), Config()
    assert file.peak_learning_rate == default.peak_learning_rate == 2e-3
    assert file.step_ema_decay == default.step_ema_decay == pytest.approx(0.99996**4, rel=1e-12)
    assert (file.optimizer, file.schedule, file.model) == (default.optimizer, default.schedule, default.model)


@pytest.mark.parametrize("name", ["rmt_t", "rmt_b", "rmt_l"])
def test_other_sizes_differ_in_the_model_only(name: str) -> None:
    expected, values = load_config("configs/rmt_s.py"), load_config(f"configs/{name}.py")
    assert values["model"].pop("name") == name
    del expected["model"]["name"]
    assert values == expected


def test_words_change_values_and_make_groups() -> None:
    words = [
        "--config.epochs=3",
        "--config.optimizer.clip_norm",
        "1",
        "--config.mesh.fsdp=2",
        "--config.data.augment.scale=[1, 2]",
        "--config.model.architecture.proj_dim=64",
        "--config.data.dir=2024",
    ]
    config = parse(load_config("configs/digits.py", words))
    assert (config.epochs, config.optimizer.clip_norm, config.mesh.fsdp) == (3, 1.0, 2)
    assert config.data.augment.scale == (1.0, 2.0)
    assert config.model.resolve(10).proj_dim == 64
    assert config.data.dir == "2024"  # text where text is wanted, although it reads as a number


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config.epoch=3"], "Unknown configuration key epoch. Did you mean epochs?"),
        (["--config.optimizer.clip_nrm=1"], "optimizer.clip_nrm. Did you mean optimizer.clip_norm?"),
        (["--config.epochs=many"], "epochs must be int, got 'many'"),
        (["--config.epochs=2.5"], "epochs must be int"),
        (["--config.epochs=True"], "epochs must be int"),
        (["--config.epochs=0"], "epochs must be at least 1"),
        (["--config.data.mean=(0.5, 0.5)"], "data.mean must be tuple"),
        (["--config.data=5"], "data must be a group of keys"),
        (["--config.epochs.more=5"], "epochs is a value, not a group"),
        (["--config.epochs"], "--config.epochs needs a value"),
        (["--epochs=5"], "Unexpected argument '--epochs=5'"),
        (["--config.model.name=rmt_smal"], "Unknown model 'rmt_smal'. Did you mean 'rmt_s"),
        (
            ["--config.model.architecture.depth=(1,1,1,1)"],
            "model.architecture.depth. Did you mean model.architecture.depths?",
        ),
        (["--config.model.architecture.proj_dim=wide"], "model.architecture.proj_dim must be int, got 'wide'"),
        (["--config.model.architecture.aux_tap=head"], "model.architecture.aux_tap must be"),
        (["--config.model.architecture=7"], "model.architecture must be a group of keys"),
        (["--config.model.dtype=float16"], "model.dtype must be 'float32' or 'bfloat16'"),
        (["--config.grad_accum_steps=3"], "cannot be cut into grad_accum_steps=3"),
        (["--config.ema_decay=1.0"], r"ema_decay must be in \[0, 1\)"),
        (["--config.optimizer.clip_norm=-1"], "clip_norm=-1.0: expected a positive number"),
        (["--config.optimizer.beta2=1"], "beta2=1.0: expected 0 <= beta2 < 1"),
    ],
)
def test_mistakes_are_named(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(") if "\\" not in message else message):
        parse(load_config("configs/digits.py", words))


def test_missing_file_names_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"no file configs/rmt_x.py. There are: .*configs/rmt_s.py"):
        load_config("configs/rmt_x.py")


def test_argument_where_none_is_taken() -> None:
    with pytest.raises(ValueError, match="takes no argument; leave out :token_label"):
        load_config("configs/rmt_t.py:token_label")
    with pytest.raises(ValueError, match="no recipe '384': leave it out, or give token_label"):
        load_config("configs/rmt_s.py:384")


@pytest.mark.parametrize("name", ["rmt_s", "rmt_b", "rmt_l"])
def test_token_labelling_is_a_recipe_of_its_own(name: str) -> None:
    plain, starred = (parse(load_config(f"configs/{name}.py{argument}")) for argument in ("", ":token_label"))
    assert (plain.model.name, starred.model.name) == (name, f"{name}_star")
    assert (plain.epochs, starred.epochs) == (300, 310)
    assert (plain.data.repeats, starred.data.repeats) == (3, 1)
    assert plain.mix == MixConfig(mixup=0.8, cutmix=1.0, group=128)
    assert starred.mix == MixConfig(mix_token=True, group=128)
    assert (plain.data.crop_ratio, starred.data.crop_ratio) == (0.875, 0.96)
    assert (plain.erasing, plain.label_smoothing) == (starred.erasing, starred.label_smoothing) == (0.25, 0.1)
    assert plain.data.augment == starred.data.augment
    assert (plain.optimizer, plain.schedule) == (starred.optimizer, starred.schedule)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 192, "mix": {"mixup": 0.8}}, r"batch_size=192 cannot be cut into groups of mix\.group=128"),
        (
            {"batch_size": 256, "grad_accum_steps": 4, "mix": {"mix_token": True}},
            r"groups of mix\.group=128 x grad_accum_steps=4: choose a multiple, or a mix\.group that divides 64",
        ),
        ({"erasing": 1.5}, "erasing must be a probability"),
        ({"loss": "mse"}, "loss must be"),
    ],
)
def test_recipes_that_cannot_run(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(changes)
