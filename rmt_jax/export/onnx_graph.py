"""A graph of ONNX while it is built: every constant and every computation is in it once."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

OPSET = 18  # of 2022: reductions take their axes as inputs from here on


class Tensor(NamedTuple):
    """What a node computes.

    Attributes:
        name: in the graph.
        shape: as it is computed; a dimension of the batch may be symbolic (`jax.export.symbolic_shape`).
    """

    name: str
    shape: tuple[Any, ...]


class Graph:
    """Nodes and constants, in the order in which they are added."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []  # onnx.NodeProto
        self.constants: list[Any] = []  # onnx.TensorProto
        self._constant_names: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._computed: dict[tuple[Any, ...], list[str]] = {}

    def constant(self, value: np.ndarray | Sequence[Any]) -> str:
        """The name of an array, or of a list of whole numbers."""
        from onnx import numpy_helper

        array = np.ascontiguousarray(value) if isinstance(value, np.ndarray) else np.array(value, np.int64)
        array = array.reshape(np.shape(value))  # contiguous scalars have become [1]
        key = array.dtype.name, array.shape, array.tobytes()
        if key not in self._constant_names:
            name = f"constant_{len(self.constants)}"
            self.constants.append(numpy_helper.from_array(array, name))
            self._constant_names[key] = name
        return self._constant_names[key]

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """The name of an operator's only output."""
        return self.add_many(1, operator, *inputs, **attributes)[0]

    def add_many(self, outputs: int, operator: str, *inputs: str, **attributes: Any) -> list[str]:
        """The names of an operator's outputs; those of the same node, where there is one."""
        from onnx import helper

        key = operator, outputs, inputs, tuple(sorted((k, _hashable(v)) for k, v in attributes.items()))
        if key not in self._computed:
            names = [f"{operator}_{len(self.nodes)}" + (f"_{i}" if outputs > 1 else "") for i in range(outputs)]
            self.nodes.append(helper.make_node(operator, list(inputs), names, name=names[0], **attributes))
            self._computed[key] = names
        return self._computed[key]

    def reshape(self, tensor: Tensor, shape: Sequence[Any]) -> Tensor:
        """To another shape, of which at most one dimension is symbolic.

        Raises:
            NotImplementedError: more are.
        """
        if tuple(shape) == tensor.shape:
            return tensor
        sizes = [size if isinstance(size, int) else -1 for size in shape]
        if sizes.count(-1) > 1:
            raise NotImplementedError(f"a reshape to {tuple(shape)}, of which only one size may depend on the batch")
        return Tensor(self.add("Reshape", tensor.name, self.constant(sizes)), tuple(shape))

    def transpose(self, tensor: Tensor, order: Sequence[int]) -> Tensor:
        """With its dimensions in another order."""
        if list(order) == sorted(order):
            return tensor
        shape = tuple(tensor.shape[axis] for axis in order)
        return Tensor(self.add("Transpose", tensor.name, perm=list(order)), shape)

    def expand(self, tensor: Tensor, shape: Sequence[Any]) -> Tensor:
        """Repeated along dimensions of size 1.

        Raises:
            NotImplementedError: as often as there are pictures in a batch whose size is open.
        """
        if tuple(shape) == tensor.shape:
            return tensor
        # Expand keeps what is larger: 1 stands for a size that the tensor has already.
        sizes = [1 if there == wanted else wanted for there, wanted in zip(tensor.shape, shape, strict=True)]
        if not all(isinstance(size, int) for size in sizes):
            raise NotImplementedError(f"an array of {tensor.shape} repeated to {tuple(shape)}")
        return Tensor(self.add("Expand", tensor.name, self.constant(sizes)), tuple(shape))


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
