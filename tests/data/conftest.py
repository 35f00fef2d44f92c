import pytest

from rmt_jax.data import prepare_digits


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A TFDS data directory with the digits in it."""
    directory = str(tmp_path_factory.mktemp("tfds"))
    prepare_digits(directory)
    return directory
