"""A JAX function as an ONNX model: its jaxpr, with everything that no picture changes worked out beforehand.

Kept here rather than taken from jax2onnx, whose releases want an Orbax older than ours.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core

from rmt_jax.export.onnx_graph import OPSET, Graph, Tensor
from rmt_jax.export.onnx_primitives import RULES, Value, name_in, whole
from rmt_jax.version import __version__

# Equations that stand for what is inside of them, by the parameter that holds it.
_INLINED = {"jit": "jaxpr", "custom_vjp_call": "call_jaxpr", "custom_jvp_call": "call_jaxpr"}
_IDENTITIES = frozenset({"name", "stop_gradient"})


def convert(
    function: Callable[[Any], Sequence[Any]],
    images: jax.ShapeDtypeStruct,
    input_name: str,
    output_names: Sequence[str],
) -> Any:
    """The `onnx.ModelProto` of a function of pictures.

    Args:
        function: of an array of `images`, to as many arrays as there are names.
        images: its shape, whose first dimension may be symbolic, and type.
        input_name: of the pictures.
        output_names: of the results.

    Raises:
        NotImplementedError: an operation that has no translation here.
    """
    from onnx import checker, helper

    closed: Any = jax.make_jaxpr(function)(images)
    graph = Graph()
    results = _evaluate(graph, closed.jaxpr, closed.consts, [Tensor(input_name, images.shape)])
    outputs = []
    for name, value, aval in zip(output_names, results, closed.out_avals, strict=True):
        graph.nodes.append(helper.make_node("Identity", [name_in(graph, whole(graph, value, aval.shape))], [name]))
        outputs.append(_value_info(name, aval))
    body = helper.make_graph(graph.nodes, "rmt_jax", [_value_info(input_name, images)], outputs, graph.constants)
    opset = helper.make_opsetid("", OPSET)
    ir_version = helper.find_min_ir_version_for([opset])
    model = helper.make_model(
        body, opset_imports=[opset], ir_version=ir_version, producer_name="rmt_jax", producer_version=__version__
    )
    checker.check_model(model)
    return model


def _evaluate(graph: Graph, jaxpr: Any, constants: Sequence[Any], inputs: Sequence[Value]) -> list[Value]:
    values: dict[Any, Value] = dict(zip(jaxpr.constvars, map(np.asarray, constants), strict=True))
    values |= dict(zip(jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> Value:
        dtype = atom.aval.dtype
        return np.asarray(atom.val, dtype) if isinstance(atom, core.Literal) else values[atom]

    for eqn in jaxpr.eqns:
        results = _apply(graph, eqn, [read(atom) for atom in eqn.invars])
        values |= dict(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _apply(graph: Graph, eqn: Any, operands: list[Value]) -> list[Value]:
    name = eqn.primitive.name
    if name in _IDENTITIES:
        return operands
    if name in _INLINED:
        inner = eqn.params[_INLINED[name]]
        return _evaluate(graph, inner.jaxpr, inner.consts, operands)
    # Of constants a broadcast is left to the operator that needs it.
    if name != "broadcast_in_dim" and not any(isinstance(operand, Tensor) for operand in operands):
        return _compute(graph, eqn, operands)
    if name not in RULES:
        raise NotImplementedError(f"JAX's operation {name!r} has no translation to ONNX here")
    return RULES[name](graph, eqn, operands)


def _compute(graph: Graph, eqn: Any, operands: list[Value]) -> list[Value]:
    """What an equation of constants gives."""
    full = [whole(graph, value, atom.aval.shape) for value, atom in zip(operands, eqn.invars, strict=True)]
    results = eqn.primitive.bind(*full, **eqn.params)
    return [np.asarray(result) for result in (results if eqn.primitive.multiple_results else [results])]


def _value_info(name: str, array: Any) -> Any:
    from onnx import helper

    sizes = [size if isinstance(size, int) else str(size) for size in array.shape]
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(array.dtype)), sizes)
