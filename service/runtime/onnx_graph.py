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


class Layer(Protocol):
    """A layer of a network."""

    def shapes(self, name: str) -> Shapes:
        """Its tensors, as the graph declares them: those of a Linear have a kernel's two sides."""
        ...

    def add(self, g: Graph, x: str, name: str) -> str:
        """Append its nodes."""
        ...


@dataclass(frozen=True)
class Linear:
    """A Linear, or one over the channels of cells of side² positions: a Conv that moves by cells.

    `part` follows its place in the names of its tensors.
    """

    inputs: int
    outputs: int
    side: int = 1
    part: str = ""

    def shapes(self, name: str) -> Shapes:
        """See Layer."""
        kernel = (self.outputs, self.inputs, self.side, self.side)
        return {f"{name}{self.part}.weight": kernel, f"{name}{self.part}.bias": (self.outputs,)}

    def add(self, g: Graph, x: str, name: str) -> str:
        """See Layer."""
        kernel, weights = (self.side, self.side), list(self.shapes(name))
        return g.add("Conv", [x, *weights], kernel_shape=kernel, strides=kernel)


@dataclass(frozen=True)
class Up:
    """A Linear, then its channels into 2×2 cells; of these, what is kept."""

    inputs: int
    outputs: int

    def shapes(self, name: str) -> Shapes:
        """See Layer."""
        return Linear(self.inputs, 4 * self.outputs, part=".l").shapes(name)

    def add(self, g: Graph, x: str, name: str) -> str:
        """See Layer."""
        x = Linear(self.inputs, 4 * self.outputs, part=".l").add(g, x, name)
        x = g.add("DepthToSpace", [x], blocksize=2, mode="DCR")
        return _blocked(g, g.add("Slice", [x, BEGIN, END, g.integers(2, 3)]))


@dataclass(frozen=True)
class Block:
    """x + pw2(dw(leaky(pw1 x))), then x + f2(leaky(f1 x)); dw repeats the edges of its input."""

    channels: int

    def shapes(self, name: str) -> Shapes:
        """See Layer."""
        c = self.channels
        shapes = Linear(c, c).shapes(f"{name}.pw1") | Linear(c, c).shapes(f"{name}.pw2")
        shapes |= Linear(c, 2 * c).shapes(f"{name}.f1") | Linear(2 * c, c).shapes(f"{name}.f2")
        return shapes | {f"{name}.dw.weight": (c, 1, 3, 3), f"{name}.dw.bias": (c,)}

    def add(self, g: Graph, x: str, name: str) -> str:
        """See Layer."""
        c = self.channels
        t = _leaky(g, Linear(c, c).add(g, x, f"{name}.pw1"))
        t = g.add("Pad", [t, g.integers(0, 0, 1, 1, 0, 0, 1, 1)], mode="edge")
        dw = [t, f"{name}.dw.weight", f"{name}.dw.bias"]
        t = g.add("Conv", dw, kernel_shape=(3, 3), group=c)
        x = g.add("Add", [Linear(c, c).add(g, t, f"{name}.pw2"), x])
        t = _leaky(g, Linear(c, 2 * c).add(g, x, f"{name}.f1"))
        return g.add("Add", [Linear(2 * c, c).add(g, t, f"{name}.f2"), x])


@dataclass(frozen=True)
class Deep:
    """Layers that see the first channels alone; the others pass by and follow theirs again.

    Attributes:
        places: of these layers in their network.
        channels: that they see. width: all channels before and after them.
    """

    places: range
    channels: int
    width: int

    def split(self, g: Graph, x: str) -> tuple[str, str]:
        """NCHW in two: what the layers see, and what passes by."""
        begin, middle, end = (g.integers(n) for n in (0, self.channels, self.width))
        axis = g.integers(1)
        seen = g.add("Slice", [x, begin, middle, axis])
        return _blocked(g, seen), g.add("Slice", [x, middle, end, axis])


def analysis(s: Sizes) -> list[Layer]:
    """The layers of g_a, from cells of pixels to y."""
    first, down = Linear(SAMPLES, s.c8, part=".l"), Linear(s.c8, s.M, side=2, part=".l")
    last = Linear(s.c16, s.c16)
    return [first, *[Block(s.c8)] * s.ne8, down, *[Block(s.c16)] * s.ne16, last]


def synthesis(s: Sizes) -> list[Layer]:
    """The layers of g_s, from y_hat to cells of pixels."""
    first, last = Linear(s.c16, s.c16), Linear(s.c8, SAMPLES, part=".l")
    return [first, *[Block(s.c16)] * s.nd16, Up(s.M, s.c8), *[Block(s.c8)] * s.nd8, last]


def hyper_analysis(s: Sizes) -> list[Layer]:
    """The layers of h_a, from y to z."""
    downs = [Linear(c, s.Cz, side=2, part=".l") for c in (s.cp, s.Cz)]
    first, last = Linear(s.M, s.cp), Linear(s.Cz, s.Cz)
    return [first, Block(s.cp), downs[0], Block(s.Cz), downs[1], last]


def weight_shapes(net: str, layers: Sequence[Layer]) -> Shapes:
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


def _run(
    g: Graph, net: str, layers: Sequence[Layer], x: str, deep: Deep | None = None
) -> str:
    """Append a network; x is NHWC, the answer NCHW."""
    x = g.add("Transpose", [x], perm=(0, 3, 1, 2))
    named = [(layer, f"{net}.{i}") for i, layer in enumerate(layers)]
    if deep is not None and deep.channels < deep.width:
        begin, end = deep.places.start, deep.places.stop
        seen, straight = deep.split(g, _in_turn(g, named[:begin], x))
        x = g.add("Concat", [_in_turn(g, named[begin:end], seen), straight], axis=1)
        named = named[end:]
    return _in_turn(g, named, x)


def _in_turn(g: Graph, layers: Iterable[tuple[Layer, str]], x: str) -> str:
    """Append layers, each with its name, one after another."""
    for layer, name in layers:
        x = layer.add(g, x, name)
    return x


def _model(
    g: Graph,
    net: str,
    layers: Sequence[Layer],
    told: tuple[int, int],
    gives: tuple[int, int],
    more: Mapping[str, tuple[int, Shape]] | None = None,
) -> bytes:
    """The graph of a network, with the type and the channels of its input and output.

    `more` are further inputs, their types and shapes.
    """
    inputs = {INPUT: (told[0], ("B", "h", "w", told[1])), **(more or {})}
    outputs = {OUTPUT: (gives[0], ("B", "h2", "w2", gives[1]))}
    return g.model(net, inputs, outputs, weight_shapes(net, layers))


def _blocked(g: Graph, x: str) -> str:
    """x in ONNX Runtime's blocked layout, so that sums that it goes into are fused into a Conv.

    A maximum over one sample changes nothing, but it is a layer that there is in that layout.
    """
    return g.add("MaxPool", [x], kernel_shape=(1, 1))


def _leaky(g: Graph, x: str) -> str:
    return g.add("LeakyRelu", [x], alpha=LEAK)
