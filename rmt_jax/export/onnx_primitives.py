"""JAX's primitives as operators of ONNX: those that the forward passes of our models consist of.

Values are arrays where they are known when the program is converted, and otherwise `Tensor`s of the graph. Both may
have size 1 along dimensions that are larger in JAX: ONNX repeats them where it computes, so a broadcast costs nothing.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rmt_jax.export.onnx_graph import Graph, Tensor

Value = np.ndarray | Tensor
Rule = Callable[[Graph, Any, list[Value]], list[Value]]  # (graph, equation, operands) -> results

# Applied to every element: an operator of the same meaning.
ELEMENTWISE = {
    "add": "Add",
    "div": "Div",
    "erf": "Erf",
    "exp": "Exp",
    "logistic": "Sigmoid",
    "max": "Max",
    "mul": "Mul",
    "sub": "Sub",
}


def name_in(graph: Graph, value: Value) -> str:
    """The name of a value, which is added as a constant where it is known."""
    return value.name if isinstance(value, Tensor) else graph.constant(value)


def whole(graph: Graph, value: Value, shape: Sequence[Any]) -> Value:
    """A value repeated to the size that JAX has."""
    if tuple(shape) == value.shape:
        return value
    if isinstance(value, Tensor):
        return graph.expand(value, shape)
    if all(isinstance(size, int) for size in shape):
        return np.broadcast_to(value, tuple(shape))
    raise NotImplementedError(f"a constant of {value.shape} repeated to {tuple(shape)}")


def _elementwise(graph: Graph, eqn: Any, values: list[Value]) -> list[Value]:
    name = graph.add(ELEMENTWISE[eqn.primitive.name], *(name_in(graph, value) for value in values))
    rank = len(eqn.outvars[0].aval.shape)
    columns = zip(*(value.shape for value in values if len(value.shape) == rank), strict=True)  # scalars have no part
    return [Tensor(name, tuple(next((size for size in sizes if not _is_one(size)), 1) for sizes in columns))]


def _tensors(graph: Graph, eqn: Any, values: list[Value]) -> list[Tensor]:
    """Operands as large as in JAX, constants among them added to the graph."""
    full = [whole(graph, value, variable.aval.shape) for value, variable in zip(values, eqn.invars, strict=True)]
    return [Tensor(name_in(graph, value), value.shape) for value in full]


def _rsqrt(graph: Graph, eqn: Any, values: list[Value]) -> list[Value]:
    root = graph.add("Sqrt", name_in(graph, values[0]))
    return [Tensor(graph.add("Reciprocal", root), values[0].shape)]


def _square(graph: Graph, eqn: Any, values: list[Value]) -> list[Value]:
    name = name_in(graph, values[0])
    return [Tensor(graph.add("Mul", name, name), values[0].shape)]


def _cast(graph: Graph, eqn: Any, values: list[Value]) -> list[Value]:
    from onnx import helper

    (variable,), dtype = eqn.invars, np.dtype(eqn.params["new_dtype"])
    if variable.aval.dtype == dtype:
        return values
    kind = helper.np_dtype_to_tensor_dtype(dtype)
    return [Tensor(graph.add("Cast", name_in(graph, values[0]), to=kind), values[0].shape)]


def broadcast(graph: Graph, eqn: Any, values: list[Value]) -> list[Value]:
    """Dimensions of size 1 where they are new; nothing is repeated."""
    shape: list[Any] = [1] * len(eqn.params["shape"])
    for axis, size in zip(eqn.params["broadcast_dimensions"], values[0].shape, strict=True):
        shape[axis] = size
    return [_reshaped(graph, values[0], shape)]


def _reshaped(graph: Graph, value: Value, shape: Sequence[Any]) -> Value:
    return graph.reshape(value, shape) if isinstance(value, Tensor) else value.reshape(tuple(shape))


def _reshape(graph: Graph, eqn: Any, values: list[Value]) -> list[Value]:
    return [graph.reshape(_tensors(graph, eqn, values)[0], eqn.params["new_sizes"])]


def _squeeze(graph: Graph, eqn: Any, values: list[Value]) -> list[Value]:
    gone = set(eqn.params["dimensions"])
    return [_reshaped(graph, values[0], [size for axis, size in enumerate(values[0].shape) if axis not in gone])]


def _transpose(graph: Graph, eqn: Any, values: list[Value]) -> list[Value]:
    tensor = Tensor(name_in(graph, values[0]), values[0].shape)
    return [graph.transpose(tensor, eqn.params["permutation"])]


def _slice(graph: Graph, eqn: Any, values: list[Value]) -> list[Value]:
    (tensor,), (aval,) = _tensors(graph, eqn, values), (eqn.outvars[0].aval,)
    starts, limits = eqn.params["start_indices"], eqn.params["limit_indices"]
    strides = eqn.params["strides"] or (1,) * len(starts)
    axes = [axis for axis, (old, new) in enumerate(zip(tensor.shape, aval.shape, strict=True)) if old != new]
    if not axes:
        return [tensor]
    parts = ([values[axis] for axis in axes] for values in (starts, limits, range(len(starts)), strides))
    return [Tensor(graph.add("Slice", tensor.name, *(graph.constant(part) for part in parts)), aval.shape)]


def _split(graph: Graph, eqn: Any, values: list[Value]) -> list[Value]:
    tensor, sizes = _tensors(graph, eqn, values)[0], eqn.params["sizes"]
    names = graph.add_many(len(sizes), "Split", tensor.name, graph.constant(sizes), axis=eqn.params["axis"])
    return [Tensor(name, variable.aval.shape) for name, variable in zip(names, eqn.outvars, strict=True)]


def _concatenate(graph: Graph, eqn: Any, values: list[Value]) -> list[Value]:
    names = [tensor.name for tensor in _tensors(graph, eqn, values)]
    return [Tensor(graph.add("Concat", *names, axis=eqn.params["dimension"]), eqn.outvars[0].aval.shape)]


def _pad(graph: Graph, eqn: Any, values: list[Value]) -> list[Value]:
    config = eqn.params["padding_config"]
    if any(low < 0 or high < 0 or between for low, high, between in config):
        raise NotImplementedError(f"padding by {config}")
    tensor, fill = _tensors(graph, eqn, values)
    pads = graph.constant([low for low, _, _ in config] + [high for _, high, _ in config])
    return [Tensor(graph.add("Pad", tensor.name, pads, fill.name), eqn.outvars[0].aval.shape)]


def _reduce(operator: str) -> Rule:
    def rule(graph: Graph, eqn: Any, values: list[Value]) -> list[Value]:
        tensor, axes = _tensors(graph, eqn, values)[0], graph.constant(eqn.params["axes"])
        return [Tensor(graph.add(operator, tensor.name, axes, keepdims=0), eqn.outvars[0].aval.shape)]

    return rule


def _dot_general(graph: Graph, eqn: Any, values: list[Value]) -> list[Value]:
    left, right = _tensors(graph, eqn, values)
    (left_sums, right_sums), (left_batch, right_batch) = eqn.params["dimension_numbers"]
    shape = eqn.outvars[0].aval.shape
    last = len(left.shape) - 1
    if not left_batch and tuple(left_sums) == (last,) and tuple(right_sums) == (0,) and len(right.shape) == 2:
        return [Tensor(graph.add("MatMul", left.name, right.name), shape)]  # a linear layer
    left = _as_matrices(graph, left, left_batch, left_sums, sums_last=True)
    right = _as_matrices(graph, right, right_batch, right_sums, sums_last=False)
    product = (*left.shape[:-1], right.shape[-1])
    return [graph.reshape(Tensor(graph.add("MatMul", left.name, right.name), product), shape)]


def _as_matrices(graph: Graph, tensor: Tensor, batch: Sequence[int], sums: Sequence[int], *, sums_last: bool) -> Tensor:
    """[*batch free sums] or [*batch sums free]."""
    free = [axis for axis in range(len(tensor.shape)) if axis not in (*batch, *sums)]
    groups = (free, sums) if sums_last else (sums, free)
    ordered = graph.transpose(tensor, [*batch, *groups[0], *groups[1]])
    sizes = [math.prod(tensor.shape[axis] for axis in group) for group in groups]
    return graph.reshape(ordered, [*(tensor.shape[axis] for axis in batch), *sizes])


def _convolution(graph: Graph, eqn: Any, values: list[Value]) -> list[Value]:
    parameters = eqn.params
    if any(size != 1 for size in parameters["lhs_dilation"]) or parameters["batch_group_count"] != 1:
        raise NotImplementedError("a transposed convolution")
    numbers = parameters["dimension_numbers"]
    image, kernel = whole(graph, values[0], eqn.invars[0].aval.shape), values[1]
    if isinstance(kernel, Tensor):
        raise NotImplementedError("a convolution whose kernel is computed from pictures")
    image = graph.transpose(Tensor(name_in(graph, image), image.shape), numbers.lhs_spec)
    starts, ends = zip(*parameters["padding"], strict=True)
    name = graph.add(
        "Conv",
        image.name,
        graph.constant(np.transpose(kernel, numbers.rhs_spec)),
        strides=list(parameters["window_strides"]),
        pads=[*starts, *ends],
        dilations=list(parameters["rhs_dilation"]),
        group=parameters["feature_group_count"],
    )
    shape = eqn.outvars[0].aval.shape
    result = Tensor(name, tuple(shape[axis] for axis in numbers.out_spec))
    return [graph.transpose(result, np.argsort(numbers.out_spec).tolist())]


RULES: dict[str, Rule] = {
    "broadcast_in_dim": broadcast,
    "concatenate": _concatenate,
    "conv_general_dilated": _convolution,
    "convert_element_type": _cast,
    "dot_general": _dot_general,
    "pad": _pad,
    "reduce_max": _reduce("ReduceMax"),
    "reduce_sum": _reduce("ReduceSum"),
    "reshape": _reshape,
    "rsqrt": _rsqrt,
    "slice": _slice,
    "split": _split,
    "square": _square,
    "squeeze": _squeeze,
    "transpose": _transpose,
} | dict.fromkeys(ELEMENTWISE, _elementwise)


def _is_one(size: Any) -> bool:
    return isinstance(size, int) and size == 1
