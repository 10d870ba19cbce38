"""g_a, h_a and g_s as ONNX graphs: functions of the backbone's sizes alone, for all weights.

Everything is NCHW and every Linear a 1×1 Conv, which lets ONNX Runtime keep whole runs of layers in
its blocked layout with activations and sums fused; of the forms that were tried it is the fastest.
A Pad that repeats edges leaves the blocked layout and costs 4 % of g_s; channels last, or slices
put together, cost as much. Layers are named by their place, as in nets/backbone.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from service.codec.fixed_point import LEAK
from service.codec.sizes import Sizes
from service.runtime.onnx_proto import FLOAT, INT16, INT64, UINT8, Graph, Shape

INPUT, OUTPUT = "input", "output"

BEGIN, END = "begin", "end"
"""First row and column, and those after the last, int64 each, of what is kept at 1/8 in g_s."""

CELL = 8
"""Pixels along the side of what one position of g_a's first and g_s's last layer stands for."""

SAMPLES = 3 * CELL * CELL
"""Samples of a cell, in the order row, column, colour."""

Shapes = dict[str, tuple[int, ...]]


class GraphLayer(Protocol):
    """A layer of a network."""

    def shapes(self, name: str) -> Shapes:
        """Its tensors, as the graph declares them: those of a Linear have a kernel's two sides."""

    def add(self, g: Graph, x: str, name: str) -> str:
        """Append its nodes."""


@dataclass(frozen=True)
class GraphLinear:
    """A Linear over the channels of cells of side² positions, as a Conv that moves by cells.

    `part` comes after its place in the names of its tensors.
    """

    inputs: int
    outputs: int
    side: int = 1
    part: str = ""

    def shapes(self, name: str) -> Shapes:
        """See GraphLayer."""
        kernel = (self.outputs, self.inputs, self.side, self.side)
        return {f"{name}{self.part}.weight": kernel, f"{name}{self.part}.bias": (self.outputs,)}

    def add(self, g: Graph, x: str, name: str) -> str:
        """See GraphLayer."""
        kernel, weights = (self.side, self.side), list(self.shapes(name))
        return g.add("Conv", [x, *weights], kernel_shape=kernel, strides=kernel)


@dataclass(frozen=True)
class GraphUp:
    """A Linear, its channels moved into 2×2 cells, and of these the positions that are kept."""

    inputs: int
    outputs: int

    def shapes(self, name: str) -> Shapes:
        """See GraphLayer."""
        return GraphLinear(self.inputs, 4 * self.outputs, part=".l").shapes(name)

    def add(self, g: Graph, x: str, name: str) -> str:
        """See GraphLayer."""
        x = GraphLinear(self.inputs, 4 * self.outputs, part=".l").add(g, x, name)
        x = g.add("DepthToSpace", [x], blocksize=2, mode="DCR")
        return _blocked(g, g.add("Slice", [x, BEGIN, END, g.integers(2, 3)]))


@dataclass(frozen=True)
class GraphBlock:
    """x + pw2(dw(leaky(pw1 x))), then x + f2(leaky(f1 x)); dw repeats the edges of its input."""

    channels: int

    def shapes(self, name: str) -> Shapes:
        """See GraphLayer."""
        c = self.channels
        sides = {"pw1": (c, c), "pw2": (c, c), "f1": (c, 2 * c), "f2": (2 * c, c)}
        shapes: Shapes = {}
        for part, (inputs, outputs) in sides.items():
            shapes |= GraphLinear(inputs, outputs).shapes(f"{name}.{part}")
        return shapes | {f"{name}.dw.weight": (c, 1, 3, 3), f"{name}.dw.bias": (c,)}

    def add(self, g: Graph, x: str, name: str) -> str:
        """See GraphLayer."""
        c = self.channels
        t = _leaky(g, GraphLinear(c, c).add(g, x, f"{name}.pw1"))
        t = g.add("Pad", [t, g.integers(0, 0, 1, 1, 0, 0, 1, 1)], mode="edge")
        dw = [t, f"{name}.dw.weight", f"{name}.dw.bias"]
        t = g.add("Conv", dw, kernel_shape=(3, 3), group=c)
        x = g.add("Add", [GraphLinear(c, c).add(g, t, f"{name}.pw2"), x])
        t = _leaky(g, GraphLinear(c, 2 * c).add(g, x, f"{name}.f1"))
        return g.add("Add", [GraphLinear(2 * c, c).add(g, t, f"{name}.f2"), x])


@dataclass(frozen=True)
class Deep:
    """Layers that take only the first channels; the others skip them and are appended again.

    Attributes:
        places: of these layers in their network.
        channels: that they take. width: all channels before and after them.
    """

    places: range
    channels: int
    width: int

    def split(self, g: Graph, x: str) -> tuple[str, str]:
        """Split NCHW: the channels that the layers take, and those that skip them."""
        begin, middle, end = (g.integers(n) for n in (0, self.channels, self.width))
        axis = g.integers(1)
        visible = g.add("Slice", [x, begin, middle, axis])
        return _blocked(g, visible), g.add("Slice", [x, middle, end, axis])


def analysis(s: Sizes) -> list[GraphLayer]:
    """The layers of g_a, from cells of pixels to y."""
    first, down = GraphLinear(SAMPLES, s.c8, part=".l"), GraphLinear(s.c8, s.M, side=2, part=".l")
    last = GraphLinear(s.c16, s.c16)
    return [first, *[GraphBlock(s.c8)] * s.ne8, down, *[GraphBlock(s.c16)] * s.ne16, last]


def synthesis(s: Sizes) -> list[GraphLayer]:
    """The layers of g_s, from y_hat to cells of pixels."""
    first, last = GraphLinear(s.c16, s.c16), GraphLinear(s.c8, SAMPLES, part=".l")
    deep, fine = [GraphBlock(s.c16)] * s.nd16, [GraphBlock(s.c8)] * s.nd8
    return [first, *deep, GraphUp(s.M, s.c8), *fine, last]


def hyper_analysis(s: Sizes) -> list[GraphLayer]:
    """The layers of h_a, from y to z."""
    downs = [GraphLinear(c, s.Cz, side=2, part=".l") for c in (s.cp, s.Cz)]
    first, last = GraphLinear(s.M, s.cp), GraphLinear(s.Cz, s.Cz)
    return [first, GraphBlock(s.cp), downs[0], GraphBlock(s.Cz), downs[1], last]


def weight_shapes(net: str, layers: Sequence[GraphLayer]) -> Shapes:
    """Name and shape of every tensor of a network, as its graph declares them.

    Args:
        net: g_a, g_s or h_a. layers: of it.
    """
    return {n: shape for i, x in enumerate(layers) for n, shape in x.shapes(f"{net}.{i}").items()}


def synthesis_graph(s: Sizes) -> bytes:
    """A serialised ModelProto of g_s.

    Its input is y_hat [1, h, w, M] int16, as integers, and what of it is kept: BEGIN and END. Its
    output is that as [1, 2h, 2w, SAMPLES] uint8. The weights that read latents are expected to undo
    Y_FRAC and the last ones to give 0–255, see synthesis_onnx.py.
    """
    g, layers = Graph(), synthesis(s)
    deep = Deep(range(1 + s.nd16), s.c16, s.M)
    x = _run(g, "g_s", layers, g.add("Cast", [INPUT], to=FLOAT), deep)
    # Rounds half to even and saturates, as numpy's rint and clip do.
    x = g.add("QuantizeLinear", [x, g.number(1.0), g.zero_byte()])
    g.add("Transpose", [x], perm=(0, 2, 3, 1), output=OUTPUT)
    kept = {BEGIN: (INT64, (2,)), END: (INT64, (2,))}
    return _model(g, "g_s", layers, (INT16, s.M), (UINT8, SAMPLES), kept)


def analysis_graph(s: Sizes) -> bytes:
    """A serialised ModelProto of g_a.

    Its input is [1, H/8, W/8, SAMPLES] uint8, its output y [1, H/16, W/16, M] float32. The first
    layer's weights are expected to take samples of 0–255, see analysis_onnx.py.
    """
    g, layers = Graph(), analysis(s)
    deep = Deep(range(2 + s.ne8, len(layers)), s.c16, s.M)
    x = _run(g, "g_a", layers, g.add("Cast", [INPUT], to=FLOAT), deep)
    g.add("Transpose", [x], perm=(0, 2, 3, 1), output=OUTPUT)
    return _model(g, "g_a", layers, (UINT8, SAMPLES), (FLOAT, s.M))


def hyper_analysis_graph(s: Sizes) -> bytes:
    """A serialised ModelProto of h_a: y [B, h, w, M] -> z [B, h/4, w/4, Cz], both float32."""
    g, layers = Graph(), hyper_analysis(s)
    g.add("Transpose", [_run(g, "h_a", layers, INPUT)], perm=(0, 2, 3, 1), output=OUTPUT)
    return _model(g, "h_a", layers, (FLOAT, s.M), (FLOAT, s.Cz))


def _run(g: Graph, net: str, layers: Sequence[GraphLayer], x: str, deep: Deep | None = None) -> str:
    """Append a network; x is NHWC, the answer NCHW."""
    x = g.add("Transpose", [x], perm=(0, 3, 1, 2))
    named = [(layer, f"{net}.{i}") for i, layer in enumerate(layers)]
    if deep is not None and deep.channels < deep.width:
        begin, end = deep.places.start, deep.places.stop
        visible, straight = deep.split(g, _in_turn(g, named[:begin], x))
        x = g.add("Concat", [_in_turn(g, named[begin:end], visible), straight], axis=1)
        named = named[end:]
    return _in_turn(g, named, x)


def _in_turn(g: Graph, layers: Iterable[tuple[GraphLayer, str]], x: str) -> str:
    """Append layers, each with its name, one after another."""
    for layer, name in layers:
        x = layer.add(g, x, name)
    return x


def _model(
    g: Graph,
    net: str,
    layers: Sequence[GraphLayer],
    input_spec: tuple[int, int],
    output_spec: tuple[int, int],
    more: Mapping[str, tuple[int, Shape]] | None = None,
) -> bytes:
    """The graph of a network.

    Args:
        input_spec, output_spec: type and channels. more: types and shapes of further inputs.
    """
    inputs = {INPUT: (input_spec[0], ("B", "h", "w", input_spec[1])), **(more or {})}
    outputs = {OUTPUT: (output_spec[0], ("B", "h2", "w2", output_spec[1]))}
    return g.model(net, inputs, outputs, weight_shapes(net, layers))


def _blocked(g: Graph, x: str) -> str:
    """x in ONNX Runtime's blocked layout, so that a sum with it is fused into a Conv.

    A maximum over one sample changes nothing, but that layer exists in the blocked layout.
    """
    return g.add("MaxPool", [x], kernel_shape=(1, 1))


def _leaky(g: Graph, x: str) -> str:
    return g.add("LeakyRelu", [x], alpha=LEAK)
