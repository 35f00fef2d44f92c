"""The training program: the only place with jit, mesh, optax and orbax."""

from rmt_jax.training.config import Config, parse
from rmt_jax.training.distributed import Processes
from rmt_jax.training.run import run

__all__ = ["Config", "Processes", "parse", "run"]
