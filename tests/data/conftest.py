import pathlib

import pytest

from rmt_jax.data import prepare_digits
from rmt_jax.data.imagenet_shards import Progress
from tests import standin as forms


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A TFDS data directory with the digits in it."""
    directory = str(tmp_path_factory.mktemp("tfds"))
    prepare_digits(directory)
    return directory


@pytest.fixture(scope="session")
def standin(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, dict[str, forms.Pictures]]:
    """A small stand-in for ImageNet in all its forms, and its pictures. Not to be changed."""
    directory = tmp_path_factory.mktemp("standin")
    return directory, forms.write_all(directory, train=6, validation=3, truncated=True, progress=Progress())
