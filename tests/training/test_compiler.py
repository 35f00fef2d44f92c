"""Options of XLA by platform."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import pytest

from rmt_jax.training import compiler
from rmt_jax.training.compiler import compiler_options


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    compiler_options.cache_clear()
    yield
    compiler_options.cache_clear()


def test_options_of_cpus_leave_convolutions_to_xla() -> None:
    def convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    arguments = jnp.ones((2, 16, 16, 8)), jnp.ones((3, 3, 8, 8))
    compiled = jax.jit(convolution, compiler_options=compiler_options("cpu")).lower(*arguments).compile()
    assert "ynn_fusion" not in compiled.as_text()


def test_options_of_cpus_keep_barriers_so_that_nothing_is_computed_twice() -> None:
    """Without them jax 0.10 computes a sine for each slice; 0.11 does without being told."""

    def slices(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        y = jax.lax.optimization_barrier(jnp.sin(x) * x)
        return y[1:] + 1, y[:-1] + 2

    compiled = jax.jit(slices, compiler_options=compiler_options("cpu")).lower(jnp.ones((64, 64))).compile()
    assert compiled.as_text().count(" sine(") == 1


def test_an_option_that_xla_does_not_know_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "_OPTIONS", {"cpu": {"xla_cpu_of_another_time": "1"}})
    assert compiler_options("cpu") == {}


def test_other_platforms_have_none() -> None:
    assert compiler_options("tpu") == compiler_options("gpu") == {}
