"""A writer of ONNX graphs whose weights are declared, not contained."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

FLOAT, UINT8, INT16 = TensorProto.FLOAT, TensorProto.UINT8, TensorProto.INT16
INT32, INT64 = TensorProto.INT32, TensorProto.INT64

IR_VERSION, OPSET = 8, 17
"""Old enough for any ONNX Runtime that serves Python 3.11."""

Specs = Mapping[str, tuple[int, tuple[int | str, ...]]]
"""TensorProto.DataType and shape of tensors by name; letters stand for any size."""

Weights = Mapping[str, NDArray[np.float32]]
"""The arrays that are passed when a session is opened, by name."""


class Graph:
    """Collects nodes and constants; each node gives one tensor."""

    def __init__(self) -> None:
        self._nodes: list[NodeProto] = []
        self._constants: dict[str, TensorProto] = {}
        self._names = 0

    def add(
        self, kind: str, inputs: Iterable[str], *, output: str | None = None, **attributes: Any
    ) -> str:
        """Append a node and return the name of its output."""
        name = self._new_name()
        name = output or name  # names of the others do not depend on it
        self._nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def scan(self, sequences: Sequence[str], body: Callable[..., str]) -> str:
        """Append a Scan: `body` of each item along the first axis of float32 tensors, stacked."""
        around, self._nodes = self._nodes, []
        items = [self._new_name() for _ in sequences]
        result = body(*items)
        nodes, self._nodes = self._nodes, around
        inputs, outputs = (
            [helper.make_tensor_value_info(n, FLOAT, None) for n in names]
            for names in (items, [result])
        )
        graph = helper.make_graph(nodes, "body", inputs, outputs)
        return self.add("Scan", sequences, body=graph, num_scan_inputs=len(items))

    def _new_name(self) -> str:
        self._names += 1
        return f"t{self._names - 1}"

    def integers(self, *values: int) -> str:
        """Return the name of a constant vector of int64, such as a shape."""
        return self.constant(np.array(values, np.int64))

    def number(self, value: float) -> str:
        """Return the name of a constant float32."""
        return self.constant(np.array(value, np.float32))

    def constant(self, value: NDArray[Any]) -> str:
        """Return the name of a constant; equal constants are stored once."""
        name = f"{value.dtype}{value.tolist()}"
        self._constants[name] = numpy_helper.from_array(value, name)
        return name

    def serialise(self, name: str, inputs: Specs, outputs: Specs, weights: Weights) -> bytes:
        """Return a ModelProto of the graph that declares the float32 weights it reads."""
        declared = [
            TensorProto(
                name=n,
                dims=weight.shape,
                data_type=FLOAT,
                data_location=TensorProto.EXTERNAL,
            )
            for n, weight in sorted(weights.items())
        ]
        graph = helper.make_graph(
            self._nodes,
            name,
            [helper.make_tensor_value_info(n, *spec) for n, spec in inputs.items()],
            [helper.make_tensor_value_info(n, *spec) for n, spec in outputs.items()],
            [*self._constants.values(), *declared],
        )
        opset = helper.make_opsetid("", OPSET)
        model = helper.make_model(graph, ir_version=IR_VERSION, opset_imports=[opset])
        data: bytes = model.SerializeToString(deterministic=True)
        return data
