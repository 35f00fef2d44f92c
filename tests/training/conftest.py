"""Small real runs: the digits with a tiny model, data prepared once a session."""

import os
import pathlib

import pytest

from tests.compilation import QUICK_ENVIRONMENT

REPOSITORY = pathlib.Path(__file__).parents[2]

# Everything of RMT in 20,000 parameters: decomposed and full retention, layer scale, drop path.
TINY = {
    "depths": (1, 1, 1, 1),
    "embed_dims": (8, 8, 16, 16),
    "num_heads": (2, 2, 2, 2),
    "proj_dim": 16,
    "layer_scale": (None, None, 0.1, 0.1),
}


def batches_of(size: int) -> list[str]:
    """Command-line words; the learning rate is not scaled."""
    return [f"--config.batch_size={size}", f"--config.reference_batch_size={size}"]


# Few pictures, of which some are left over: what takes time is to compute with them.
STEPS_PER_EPOCH, BATCH = 5, 32
FEW_PICTURES = ["--config.data.train_split=train[:180]", *batches_of(BATCH)]
# All 1,437, for as many steps.
ALL_PICTURES = ["--config.data.train_split=train", *batches_of(256)]


def tiny_words(digits_dir: str) -> list[str]:
    """Command-line words that make configs/digits.py a run of 2 epochs of 5 steps."""
    return [
        f"--config.data.dir={digits_dir}",
        *(f"--config.model.architecture.{key}={value}" for key, value in TINY.items()),
        *FEW_PICTURES,
        "--config.epochs=2",
        "--config.eval_every_epochs=1",
        "--config.ema_decay=0.5",
        "--config.log_every_steps=2",
    ]


@pytest.fixture
def words(digits_dir: str) -> list[str]:
    return tiny_words(digits_dir)


def quick_environment(compiled: pathlib.Path | None = None) -> dict[str, str]:
    """Of processes with one device. They keep compiled programs in a folder, by default where all tests do."""
    cache = {"JAX_COMPILATION_CACHE_DIR": str(compiled), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return os.environ | QUICK_ENVIRONMENT | {"JAX_PLATFORMS": "cpu"} | (cache if compiled else {})


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    return quick_environment()
