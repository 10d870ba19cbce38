"""g_a, h_a and g_s as ONNX graphs.

Everything is NCHW and every Linear a 1×1 Conv, which lets ONNX Runtime keep whole runs of layers in
its blocked layout with activations and sums fused; of the forms that were tried it is the fastest.
A Pad that repeats edges leaves the blocked layout and costs 4 % of g_s; channels last, or slices
put together, cost as much. Layers are named by their place, as in nets/backbone.py.
"""

from __future__ import annotations

import numpy as np

from service.codec.fixed_point import LEAK
from service.codec.sizes import ConvSizes, Sizes
from service.export.graph import FLOAT, INT16, INT64, UINT8, Graph, Specs, Weights
from service.transforms.synthesis_onnx import BEGIN, END, INPUT, OUTPUT, SAMPLES


def synthesis_graph(s: ConvSizes, weights: Weights) -> bytes:
    """Build g_s.

    Its inputs are y_hat [1, h, w, M] int16 in units of 2^-Y_FRAC, and which part of it is kept at
    1/8: BEGIN and END. Its output is that part as [1, 2h, 2w, SAMPLES] uint8.
    """
    g = _TransformGraph(weights)
    x = g.channels_first(g.add("Cast", [INPUT], to=FLOAT))
    deep, straight = g.split(x, s)
    x = g.linear(deep, "g_s.0")
    for place in range(1, 1 + s.nd16):
        x = g.block(x, f"g_s.{place}")
    up = 1 + s.nd16
    x = g.up(g.join(x, straight), f"g_s.{up}.l")
    for place in range(up + 1, up + 1 + s.nd8):
        x = g.block(x, f"g_s.{place}")
    x = g.linear(x, f"g_s.{up + 1 + s.nd8}.l")
    # Rounds half to even and saturates, as numpy's rint and clip do.
    zero = g.constant(np.zeros((), np.uint8))
    g.channels_last(g.add("QuantizeLinear", [x, g.number(1), zero]))
    kept = {BEGIN: (INT64, (2,)), END: (INT64, (2,))}
    return g.build("g_s", (INT16, s.M), (UINT8, SAMPLES), kept)


def analysis_graph(s: ConvSizes, weights: Weights) -> bytes:
    """Build g_a: cells of pixels [1, H/8, W/8, SAMPLES] uint8 -> y [1, H/16, W/16, M] float32."""
    g = _TransformGraph(weights)
    x = g.channels_first(g.add("Cast", [INPUT], to=FLOAT))
    x = g.linear(x, "g_a.0.l")
    for place in range(1, 1 + s.ne8):
        x = g.block(x, f"g_a.{place}")
    down = 1 + s.ne8
    x, straight = g.split(g.linear(x, f"g_a.{down}.l"), s)
    for place in range(down + 1, down + 1 + s.ne16):
        x = g.block(x, f"g_a.{place}")
    x = g.linear(x, f"g_a.{down + 1 + s.ne16}")
    g.channels_last(g.join(x, straight))
    return g.build("g_a", (UINT8, SAMPLES), (FLOAT, s.M))


def hyper_analysis_graph(s: Sizes, weights: Weights) -> bytes:
    """Build h_a: y [B, h, w, M] -> z [B, h/4, w/4, Cz], both float32."""
    g = _TransformGraph(weights)
    x = g.block(g.linear(g.channels_first(INPUT), "h_a.0"), "h_a.1")
    x = g.block(g.linear(x, "h_a.2.l"), "h_a.3")
    g.channels_last(g.linear(g.linear(x, "h_a.4.l"), "h_a.5"))
    return g.build("h_a", (FLOAT, s.M), (FLOAT, s.Cz))


class _TransformGraph(Graph):
    """A graph that knows the layers of nets/backbone.py; the shapes are those of their weights."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self._weights = weights

    def build(
        self, name: str, source: tuple[int, int], result: tuple[int, int], more: Specs | None = None
    ) -> bytes:
        """Serialise the graph, given type and channels of its input and output."""
        inputs: Specs = {INPUT: (source[0], ("B", "h", "w", source[1])), **(more or {})}
        outputs: Specs = {OUTPUT: (result[0], ("B", "h2", "w2", result[1]))}
        return self.serialise(name, inputs, outputs, self._weights)

    def channels_first(self, x: str) -> str:
        return self.add("Transpose", [x], perm=(0, 3, 1, 2))

    def channels_last(self, x: str) -> str:
        """Make x the output of the graph."""
        return self.add("Transpose", [x], perm=(0, 2, 3, 1), output=OUTPUT)

    def linear(self, x: str, name: str) -> str:
        """Append a Linear over cells of as many positions as the kernel has."""
        kernel = self._weights[f"{name}.weight"].shape[2:]
        tensors = [x, f"{name}.weight", f"{name}.bias"]
        return self.add("Conv", tensors, kernel_shape=kernel, strides=kernel)

    def up(self, x: str, name: str) -> str:
        """Append a Linear, move its channels into 2×2 cells, and keep some of the positions.

        The Slice hides from ONNX Runtime how many channels there are, which it must know for the
        blocked layout; the Reshape changes nothing, but tells it.
        """
        channels = len(self._weights[f"{name}.weight"]) // 4
        x = self.add("DepthToSpace", [self.linear(x, name)], blocksize=2, mode="DCR")
        x = self.add("Slice", [x, BEGIN, END, self.integers(2, 3)])
        return self._blocked(self.add("Reshape", [x, self.integers(0, channels, 0, 0)]))

    def block(self, x: str, name: str) -> str:
        """Append x + pw2(dw(leaky(pw1 x))), then x + f2(leaky(f1 x)); dw repeats edges."""
        ends = self.integers(0, 0, 1, 1, 0, 0, 1, 1)
        t = self.add("Pad", [self._leaky(self.linear(x, f"{name}.pw1")), ends], mode="edge")
        taps = f"{name}.dw.weight"
        channels = len(self._weights[taps])
        tensors = [t, taps, f"{name}.dw.bias"]
        t = self.add("Conv", tensors, kernel_shape=(3, 3), group=channels)
        x = self.add("Add", [self.linear(t, f"{name}.pw2"), x])
        t = self._leaky(self.linear(x, f"{name}.f1"))
        return self.add("Add", [self.linear(t, f"{name}.f2"), x])

    def split(self, x: str, s: ConvSizes) -> tuple[str, str | None]:
        """Split the channels that the layers at 1/16 take from those that skip them, if any."""
        if s.c16 == s.M:
            return x, None
        begin, middle, end = (self.integers(n) for n in (0, s.c16, s.M))
        axis = self.integers(1)
        deep = self.add("Slice", [x, begin, middle, axis])
        return self._blocked(deep), self.add("Slice", [x, middle, end, axis])

    def join(self, deep: str, straight: str | None) -> str:
        """Append the channels that `split` took away."""
        return deep if straight is None else self.add("Concat", [deep, straight], axis=1)

    def _blocked(self, x: str) -> str:
        """x in ONNX Runtime's blocked layout, so that a sum with it is fused into a Conv.

        A maximum over one sample changes nothing, but that layer exists in the blocked layout.
        """
        return self.add("MaxPool", [x], kernel_shape=(1, 1))

    def _leaky(self, x: str) -> str:
        return self.add("LeakyRelu", [x], alpha=LEAK)
