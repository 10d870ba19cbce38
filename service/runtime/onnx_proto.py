"""ONNX models written without the onnx package: a graph's nodes and constants to bytes.

A graph holds no weights. It declares them as external data, and they are passed as arrays when a
session is opened (onnx_session.py), so one graph serves every rate.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import Final

import numpy as np

IR_VERSION, OPSET = 8, 17
"""Old enough for any ONNX Runtime that serves Python 3.11."""

FLOAT, UINT8, INT16, INT32, INT64 = 1, 2, 5, 6, 7
"""TensorProto.DataType."""

_VARINT, _BYTES, _FIXED32 = 0, 2, 5
"""Wire types of protocol buffers."""

_EXTERNAL: Final = 1
"""TensorProto.DataLocation."""

Shape = tuple[int | str, ...]
"""Sizes of a tensor; letters stand for any size."""


class Graph:
    """Collects nodes; each gives one tensor, named after its place."""

    def __init__(self) -> None:
        self._nodes: list[bytes] = []
        self._constants: dict[str, bytes] = {}

    def add(
        self,
        kind: str,
        inputs: Iterable[str],
        *,
        output: str | None = None,
        **attributes: int | float | str | tuple[int, ...],
    ) -> str:
        """Append a node and return the name of its output."""
        name = output or f"t{len(self._nodes)}"
        self._nodes.append(
            _message(
                *(_field(1, i.encode()) for i in inputs),
                _field(2, name.encode()),
                _field(4, kind.encode()),
                *(_field(5, _attribute(key, value)) for key, value in attributes.items()),
            )
        )
        return name

    def integers(self, *values: int) -> str:
        """A vector of int64, such as a shape."""
        return self._constant(INT64, np.array(values, "<i8").tobytes(), len(values))

    def number(self, value: float) -> str:
        """A float32."""
        return self._constant(FLOAT, struct.pack("<f", value))

    def zero_byte(self) -> str:
        """The number 0 as uint8."""
        return self._constant(UINT8, b"\0")

    def model(
        self,
        name: str,
        inputs: Mapping[str, tuple[int, Shape]],
        outputs: Mapping[str, tuple[int, Shape]],
        weights: Mapping[str, tuple[int, ...]],
    ) -> bytes:
        """A serialised ModelProto.

        Args:
            name: of the graph. inputs, outputs: type and shape by name.
            weights: shapes of the float32 tensors that are passed when a session is opened.
        """
        tensors = (*self._constants.values(), *(_external(n, s) for n, s in weights.items()))
        graph = _message(
            *(_field(1, node) for node in self._nodes),
            _field(2, name.encode()),
            *(_field(5, tensor) for tensor in tensors),
            *(_field(11, _value(n, *spec)) for n, spec in inputs.items()),
            *(_field(12, _value(n, *spec)) for n, spec in outputs.items()),
        )
        opset = _message(_field(1, b""), _field(2, OPSET))
        return _message(_field(1, IR_VERSION), _field(8, opset), _field(7, graph))

    def _constant(self, kind: int, data: bytes, *shape: int) -> str:
        name = f"c{kind}_{data.hex()}"
        sizes = (_field(1, size) for size in shape)
        self._constants[name] = _message(
            *sizes, _field(2, kind), _field(8, name.encode()), _field(9, data)
        )
        return name


def _attribute(name: str, value: int | float | str | tuple[int, ...]) -> bytes:
    """AttributeProto."""
    if isinstance(value, int):
        parts, kind = [_field(3, value)], 2
    elif isinstance(value, float):
        parts, kind = [_field(2, value)], 1
    elif isinstance(value, str):
        parts, kind = [_field(4, value.encode())], 3
    else:
        parts, kind = [_field(8, item) for item in value], 7
    return _message(_field(1, name.encode()), *parts, _field(20, kind))


def _external(name: str, shape: tuple[int, ...]) -> bytes:
    """TensorProto of float32 whose data are passed when a session is opened."""
    location = _message(_field(1, b"location"), _field(2, b"in memory"))
    return _message(
        *(_field(1, size) for size in shape),
        _field(2, FLOAT),
        _field(8, name.encode()),
        _field(13, location),
        _field(14, _EXTERNAL),
    )


def _value(name: str, kind: int, shape: Shape) -> bytes:
    """ValueInfoProto of a tensor."""
    sizes = (_field(2, d.encode()) if isinstance(d, str) else _field(1, d) for d in shape)
    dimensions = _message(*(_field(1, size) for size in sizes))
    tensor = _message(_field(1, kind), _field(2, dimensions))
    return _message(_field(1, name.encode()), _field(2, _message(_field(1, tensor))))


def _message(*fields: bytes) -> bytes:
    return b"".join(fields)


def _field(number: int, value: bytes | int | float) -> bytes:
    """One field of a protocol buffer: non-negative integers, float32, or bytes and messages."""
    if isinstance(value, int):
        return _varint(number << 3 | _VARINT) + _varint(value)
    if isinstance(value, float):
        return _varint(number << 3 | _FIXED32) + struct.pack("<f", value)
    return _varint(number << 3 | _BYTES) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
