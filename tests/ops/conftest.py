from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def strict_promotion() -> Iterator[None]:
    """No silent change of type in our code. Not for the whole session: optax cannot run under it."""
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture(autouse=True, scope="module")
def asked_formulations() -> None:
    """None: they are what is tested."""
