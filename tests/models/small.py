"""Models for tests: abstract ones of full size, and small ones with weights from numpy, which compile nothing."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rmt_jax.models import Classifier, create_model

Tree = dict[str, Any]

# Small everywhere, but nothing the same by accident: two heads, widths that differ, hidden layers that differ.
SIZES = {"embed_dims": (8, 8, 16, 16), "depths": (1, 1, 1, 1), "num_heads": (2, 2, 2, 2), "num_classes": 5}

# A quarter of the compile time on CPUs: LLVM does not optimise, and fusions take XLA's older emitters.
QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}

quick_jit = functools.partial(jax.jit, compiler_options=QUICK)


class OneKey(nnx.Rngs):
    """The same key at every call: for shapes, twenty times faster to trace than counting keys."""

    def __init__(self) -> None:
        super().__init__(0)

    def __getattr__(self, name: str) -> Callable[[], jax.Array]:
        if name == "params":
            return lambda: jax.random.key(0)
        raise AttributeError(name)


def abstract(name: str, **overrides: Any) -> Classifier:
    """A model whose arrays are shapes only."""
    return nnx.eval_shape(lambda: create_model(name, rngs=OneKey(), **overrides))


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
        elif "scale" in names or names.split("/")[-2:] == ["var", kind]:
            array = 1 + 0.1 * np.abs(normal)
        elif "kernel" in names:
            fan_in = np.prod(leaf.shape[:-1])
            array = normal / np.sqrt(fan_in)
        else:
            array = 0.1 * normal
        return jnp.asarray(array, jnp.float32)

    return nnx.merge(graph, jax.tree.map_with_path(fill, state))


def images(batch: int = 2, height: int = 64, width: int = 64, seed: int = 0) -> jax.Array:
    """64 pixels: the smallest size at which the last stage has neighbours to look at."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal((batch, height, width, 3)), jnp.float32)


def arrays(model: nnx.Module) -> tuple[nnx.GraphDef, Tree, Tree]:
    """(graph, parameters, BatchNorm statistics), the arrays as nested dicts."""
    graph, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    return graph, nnx.to_pure_dict(params), nnx.to_pure_dict(stats)


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

    return quick_jit(run)(params, stats, x)


def primitives(jaxpr: Any) -> list[Any]:
    """Every equation of a jaxpr and of those inside it."""
    found = []
    for equation in jaxpr.eqns:
        found.append(equation)
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                found += primitives(inner)
    return found
