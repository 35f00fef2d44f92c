"""A model's arrays by path: "backbone/layers/0/blocks/1/retention/q_proj/kernel"."""

from collections.abc import Iterator, Mapping
from typing import Any

from flax import nnx


def model_arrays(model: nnx.Module) -> dict[str, Any]:
    """Parameters and BatchNorm statistics of a model (or of an abstract one) as one nested dict."""
    return nnx.to_pure_dict(nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat)))


def flat_paths(tree: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(path, leaf) of a nested dict, with "/" between the keys."""
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from flat_paths(value, f"{path}/")
        else:
            yield path, value


def nest(flat: Mapping[str, Any]) -> dict[Any, Any]:
    """The reverse of `flat_paths`: {"a/0/b": x} -> {"a": {0: {"b": x}}}."""
    tree: dict[Any, Any] = {}
    for path, leaf in flat.items():
        *parents, last = (int(key) if key.isdigit() else key for key in path.split("/"))
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = leaf
    return tree
