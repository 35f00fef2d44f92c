"""One session for all tests: eight virtual CPU devices, products in full float32, quick compilation."""

import atexit
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

import jax
import numpy as np
import pytest

from rmt_jax.data import DataConfig, open_source, prepare_digits
from rmt_jax.data.detection.digits import prepare_digits_detection
from rmt_jax.data.digits import prepare
from rmt_jax.data.imagenet_shards import Progress
from rmt_jax.data.label_maps import map_name
from rmt_jax.data.label_writer import LabelMapWriter
from rmt_jax.data.segmentation.digits import DigitsSegmentation
from rmt_jax.ops import formulations
from tests import standin as forms
from tests.compilation import QUICK_FLAGS, QUICK_FORMULATIONS

# Read when the backend starts, at the first computation.
devices = "--xla_force_host_platform_device_count=8"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK_FLAGS} {devices}".strip()

# Where libtpu is installed and no TPU is, looking for one takes time and prints errors. For processes too.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
jax.config.update("jax_platforms", os.environ["JAX_PLATFORMS"])

jax.config.update("jax_default_matmul_precision", "highest")

# Tests run the same programs again and again, each from a function of its own or in processes of their own. What one
# has compiled is there for all, pytest's workers too, which inherit these variables. With a largest size the cache
# locks its files: without, one process reads what another has half written.
if "PYTEST_XDIST_WORKER" not in os.environ:
    compiled = tempfile.mkdtemp(prefix="compiled")
    atexit.register(shutil.rmtree, compiled, ignore_errors=True)
    for name, value in {
        "jax_compilation_cache_dir": compiled,
        "jax_compilation_cache_max_size": 4 * 2**30,  # bytes: more than is ever there
        "jax_persistent_cache_min_compile_time_secs": 0.2,
    }.items():
        os.environ[name.upper()] = str(value)
        jax.config.update(name, value)  # for this process, whose variables JAX has read when it was imported

LONGEST = (
    "test_processes.py",
    "test_detection_runs.py",
    "test_notebooks.py",
    "test_segmentation_runs.py",
    "test_program.py",
    "test_conversion.py",
    "test_torch_parity.py",
    "test_parity.py",
    "test_state.py",
    "test_sharding.py",
    "test_recipes.py",
    "test_finetune.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that at the end both processes have something left to do."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(autouse=True, scope="module")
def asked_formulations() -> Iterator[None]:
    """Quick ones; where those of users are tested, a fixture of this name in the place of this one."""
    with formulations.asking(**QUICK_FORMULATIONS):
        yield


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A TFDS data directory with the digits in it."""
    directory = str(tmp_path_factory.mktemp("tfds"))
    prepare_digits(directory)
    return directory


@pytest.fixture(scope="session")
def digits_segmentation_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A TFDS data directory with the digits on photographs in it."""
    directory = str(tmp_path_factory.mktemp("tfds"))
    prepare(DigitsSegmentation, directory)
    return directory


@pytest.fixture(scope="session")
def digits_detection_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A TFDS data directory beside whose data sets are the digits with boxes."""
    directory = str(tmp_path_factory.mktemp("tfds"))
    prepare_digits_detection(directory)
    return directory


@pytest.fixture(scope="session")
def standin(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, dict[str, forms.Pictures]]:
    """A small stand-in for ImageNet in all its forms, and its pictures. Not to be changed."""
    directory = tmp_path_factory.mktemp("standin")
    return directory, forms.write_all(directory, train=6, validation=3, truncated=True, progress=Progress())


@pytest.fixture(scope="session")
def standin_maps(
    standin: tuple[pathlib.Path, dict[str, forms.Pictures]], tmp_path_factory: pytest.TempPathFactory
) -> pathlib.Path:
    """A file of random label maps for the training pictures of the stand-in."""
    path = tmp_path_factory.mktemp("maps") / "maps.array_record"
    source = open_source(DataConfig(name="folder", dir=str(standin[0] / "folder"), eval_split="val"), "train")
    rng = np.random.default_rng(0)
    with LabelMapWriter(path, {}) as writer:
        for index in range(len(source)):
            scores, ids = rng.standard_normal((5, 18, 18)), rng.integers(0, source.num_classes, (5, 18, 18))
            writer.add(map_name(source.id(index)), np.stack([scores, ids]).astype(np.float16))
    return path
