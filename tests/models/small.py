"""Models for tests: abstract ones of full size, and small ones with weights from numpy, which compile nothing."""

import contextlib
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
from flax import nnx

from rmt_jax.models import Classifier, abstract_model, create_model
from rmt_jax.training.state import split_model as arrays

Tree = dict[str, Any]

# Small everywhere, but nothing the same by accident: two heads, widths that differ, hidden layers that differ.
SIZES = {"embed_dims": (8, 8, 16, 16), "depths": (1, 1, 1, 1), "num_heads": (2, 2, 2, 2), "num_classes": 5}


@functools.cache
def abstract(name: str, **overrides: Any) -> Classifier:
    """A model whose arrays are shapes only. Shared between tests: not to be changed."""
    return abstract_model(lambda rngs: create_model(name, rngs=rngs, **overrides))


def small(name: str = "rmt_nano", *, seed: int = 0, dtype: Any = jnp.float32, **overrides: Any) -> Classifier:
    """A small model that keeps the flags of the named one, with weights that leave no branch negligible.

    Layer scale is about 1/2 instead of 1e-6, and statistics are not those of a fresh BatchNorm.
    """
    rng = np.random.default_rng(seed)
    options = {**SIZES, "proj_dim": 12, "drop_path": 0.0, **overrides}
    graph, state = nnx.split(abstract(name, dtype=dtype, **options))

    def fill(path: Any, leaf: Any) -> jax.Array:
        kind = str(getattr(path[-1], "key", getattr(path[-1], "name", "")))
        names = jax.tree_util.keystr(path, simple=True, separator="/")
        normal = rng.standard_normal(leaf.shape)
        if "gamma" in names:
            array = 0.5 + 0.1 * normal
        elif "scale" in names.split("/") or names.split("/")[-2:] == ["var", kind]:
            array = 1 + 0.1 * np.abs(normal)
        elif "kernel" in names:
            fan_in = np.prod(leaf.shape[:-1])
            array = normal / np.sqrt(fan_in)
        else:
            array = 0.1 * normal
        return jnp.asarray(array, jnp.float32)

    return nnx.merge(graph, jax.tree.map_with_path(fill, state))


@contextlib.contextmanager
def jaxtyping_disabled() -> Iterator[None]:
    """As for a user: without the type checker of this test session, which would be first to complain."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def images(batch: int = 2, height: int = 64, width: int = 64, seed: int = 0) -> jax.Array:
    """64 pixels: the smallest size at which the last stage has neighbours to look at."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal((batch, height, width, 3)), jnp.float32)


def flat(tree: Mapping[Any, Any]) -> dict[str, Any]:
    """{path: leaf} with "/" between the keys."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def predict(model: Classifier, x: jax.Array) -> jax.Array:
    """Logits in evaluation mode."""
    graph, params, stats = arrays(model)

    def run(params: Tree, stats: Tree, x: jax.Array) -> jax.Array:
        model = nnx.merge(graph, params, stats)
        model.eval()
        return model(x)

    return jax.jit(run)(params, stats, x)


def primitives(jaxpr: Any) -> list[Any]:
    """Every equation of a jaxpr and of those inside it, but not inside kernels."""
    found = []
    for equation in jaxpr.eqns:
        found.append(equation)
        if equation.primitive.name == "pallas_call":
            continue
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                found += primitives(inner)
    return found
