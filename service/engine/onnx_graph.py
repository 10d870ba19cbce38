"""g_s as an ONNX graph, written without the onnx package: a function of the backbone's sizes alone.

The graph holds no weights. It declares them as external data, and whoever opens a session hands
them over as arrays (synthesis_onnx.py), so one graph serves every rate and every image's update.

Everything is NCHW and every Linear a 1×1 Conv, which lets ONNX Runtime keep whole runs of layers in
its blocked layout with activations and sums fused; of the forms that were tried it is the fastest.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from service.codec.fixed_point import LEAK
from service.codec.sizes import Sizes

IR_VERSION, OPSET = 8, 17
"""Old enough for any ONNX Runtime that serves Python 3.11."""

INPUT, OUTPUT = "y_hat", "pixels"

_FLOAT, _UINT8, _INT16 = 1, 2, 5
"""TensorProto.DataType."""

_VARINT, _BYTES, _FIXED32 = 0, 2, 5
"""Wire types of protocol buffers."""

_EXTERNAL = 1
"""TensorProto.DataLocation."""


def weight_shapes(s: Sizes) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of g_s, as stored and as the graph declares them.

    Linear layers are [N, K] in the store and [N, K, 1, 1] here: the same memory.
    """
    linear = {"g_s.0": (s.M, s.M)}
    depthwise: dict[str, int] = {}
    for name, c in _blocks(s):
        linear |= {f"{name}.pw1": (c, c), f"{name}.pw2": (c, c)}
        linear |= {f"{name}.f1": (2 * c, c), f"{name}.f2": (c, 2 * c)}
        depthwise[f"{name}.dw"] = c
    up2, up8 = _ups(s)
    linear |= {up2: (4 * s.c8, s.M), up8: (3 * 64, s.c8)}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, (n, k) in linear.items():
        shapes |= {f"{name}.weight": (n, k, 1, 1), f"{name}.bias": (n,)}
    for name, c in depthwise.items():
        shapes |= {f"{name}.weight": (c, 1, 3, 3), f"{name}.bias": (c,)}
    return shapes


def synthesis_graph(s: Sizes) -> bytes:
    """A serialised ModelProto.

    Its input is `y_hat` [1, h, w, M] int16, as integers; its output `pixels` [1, 2h, 2w, 192]
    uint8, the 8×8×3 samples of each cell. The first layer's weights are expected to undo Y_FRAC and
    the last one's to give 0–255, see synthesis_onnx.py.
    """
    g = _Graph()
    up2, up8 = _ups(s)
    stages = dict(_blocks(s))
    x = g.add("Transpose", [g.add("Cast", [INPUT], to=_FLOAT)], perm=(0, 3, 1, 2))
    x = g.conv(x, "g_s.0")
    for name, c in list(stages.items())[: s.nd16]:
        x = g.block(x, name, c)
    x = g.add("DepthToSpace", [g.conv(x, up2)], blocksize=2, mode="DCR")
    # A maximum over one sample changes nothing, but it is a layer that ONNX Runtime has in its
    # blocked layout: without one here, no sum of the blocks below would be fused into a Conv.
    x = g.add("MaxPool", [x], kernel_shape=(1, 1))
    for name, c in list(stages.items())[s.nd16 :]:
        x = g.block(x, name, c)
    # Rounds half to even and saturates, as numpy's rint and clip do.
    x = g.add("QuantizeLinear", [g.conv(x, up8), g.one(), g.zero()])
    g.add("Transpose", [x], perm=(0, 2, 3, 1), output=OUTPUT)
    weights = [_external(name, shape) for name, shape in weight_shapes(s).items()]
    graph = _message(
        *(_field(1, node) for node in g.nodes),
        _field(2, b"g_s"),
        *(_field(5, tensor) for tensor in (*g.constants, *weights)),
        _field(11, _value(INPUT, _INT16, (1, "h", "w", s.M))),
        _field(12, _value(OUTPUT, _UINT8, (1, "h2", "w2", 3 * 64))),
    )
    opset = _message(_field(1, b""), _field(2, OPSET))
    return _message(_field(1, IR_VERSION), _field(8, opset), _field(7, graph))


def _blocks(s: Sizes) -> list[tuple[str, int]]:
    """Name and channels of every block, in order."""
    first = [(f"g_s.{1 + i}", s.M) for i in range(s.nd16)]
    return first + [(f"g_s.{2 + s.nd16 + i}", s.c8) for i in range(s.nd8)]


def _ups(s: Sizes) -> tuple[str, str]:
    """Names of the layers before the two shuffles."""
    return f"g_s.{1 + s.nd16}.l", f"g_s.{2 + s.nd16 + s.nd8}.l"


class _Graph:
    """Collects nodes; each gives one tensor, named after its place."""

    def __init__(self) -> None:
        self.nodes: list[bytes] = []
        self.constants: list[bytes] = []

    def add(
        self,
        kind: str,
        inputs: Iterable[str],
        *,
        output: str | None = None,
        **attributes: int | float | str | tuple[int, ...],
    ) -> str:
        """Append a node and return the name of its output."""
        name = output or f"t{len(self.nodes)}"
        self.nodes.append(
            _message(
                *(_field(1, i.encode()) for i in inputs),
                _field(2, name.encode()),
                _field(4, kind.encode()),
                *(_field(5, _attribute(key, value)) for key, value in attributes.items()),
            )
        )
        return name

    def conv(self, x: str, name: str) -> str:
        """A Linear layer."""
        return self.add("Conv", [x, f"{name}.weight", f"{name}.bias"], kernel_shape=(1, 1))

    def block(self, x: str, name: str, channels: int) -> str:
        """x + pw2(dw(leaky(pw1 x))), then x + f2(leaky(f1 x))."""
        t = self._leaky(self.conv(x, f"{name}.pw1"))
        dw = [t, f"{name}.dw.weight", f"{name}.dw.bias"]
        t = self.add("Conv", dw, kernel_shape=(3, 3), pads=(1, 1, 1, 1), group=channels)
        x = self.add("Add", [self.conv(t, f"{name}.pw2"), x])
        t = self._leaky(self.conv(x, f"{name}.f1"))
        return self.add("Add", [self.conv(t, f"{name}.f2"), x])

    def one(self) -> str:
        """The number 1 as a float32."""
        return self._constant("one", _FLOAT, struct.pack("<f", 1.0))

    def zero(self) -> str:
        """The number 0 as a byte."""
        return self._constant("zero", _UINT8, b"\0")

    def _leaky(self, x: str) -> str:
        return self.add("LeakyRelu", [x], alpha=LEAK)

    def _constant(self, name: str, kind: int, data: bytes) -> str:
        self.constants.append(
            _message(_field(2, kind), _field(8, name.encode()), _field(9, data))
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
    """TensorProto of float32 whose data are handed over when a session is opened."""
    location = _message(_field(1, b"location"), _field(2, b"in memory"))
    return _message(
        *(_field(1, size) for size in shape),
        _field(2, _FLOAT),
        _field(8, name.encode()),
        _field(13, location),
        _field(14, _EXTERNAL),
    )


def _value(name: str, kind: int, shape: tuple[int | str, ...]) -> bytes:
    """ValueInfoProto of a tensor; sizes in letters may be any."""
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
