"""g_a and g_s of the Swin family as ONNX graphs.

Features are [rows, columns, channels] of one picture. A layer is a Scan over rows of whole
attention windows, so that what it computes on the way stays small. Grids are padded to whole
windows, on all sides where windows are shifted. A mask of what is padding goes the same way as the
features, and is added to the logits: tokens of the picture do not see padding, and what becomes of
the padding is cut off. Windows wrap around in nets/swin.py, which computes the same.
"""

from __future__ import annotations

import numpy as np

from service.codec.fixed_point import LEAK
from service.codec.sizes import HEAD, SHIFT, WINDOW, SwinSizes
from service.export.graph import FLOAT, INT16, INT64, UINT8, Graph, Specs, Weights
from service.transforms.swin_onnx import KEPT, SAMPLES, UNSEEN
from service.transforms.synthesis_onnx import INPUT, OUTPUT


def swin_analysis_graph(s: SwinSizes, weights: Weights) -> bytes:
    """Build g_a: cells of pixels [H/4, W/4, SAMPLES] uint8 -> y [H/16, W/16, M] float32."""
    g = _SwinGraph(s, "g_a")
    cells = g.add("Cast", [INPUT], to=FLOAT)
    p4 = g.linear(
        g.linear(g.largest(g.leaky(g.linear(cells, "prompts.patch.l"))), "prompts.up.l"),
        "prompts.stage4.l",
    )
    p8 = g.linear(g.unshuffle(p4), "prompts.stage8.l")
    p16 = g.linear(g.unshuffle(g.whole_cells(p8)), "prompts.stage16.l")
    x = g.stage(g.linear(cells, "patch.l"), p4, "stage4", s.c4)
    x = g.stage(g.linear(g.unshuffle(x), "down8.l"), p8, "stage8", s.c8)
    x = g.linear(g.unshuffle(x), "down16.l")
    deep = g.linear(g.stage(g.channels(x, 0, s.c16), p16, "stage16", s.c16), "last")
    g.add("Concat", [deep, g.channels(x, s.c16, s.M)], axis=2, output=OUTPUT)
    inputs: Specs = {INPUT: (UINT8, ("h4", "w4", SAMPLES))}
    return g.serialise("g_a", inputs, {OUTPUT: (FLOAT, ("h", "w", s.M))}, weights)


def swin_synthesis_graph(s: SwinSizes, weights: Weights) -> bytes:
    """Build g_s: y_hat [h, w, M] int16 in units of 2^-Y_FRAC -> cells [h4, w4, SAMPLES] uint8.

    Further inputs are the parts of the features that are kept after each stage, see KEPT.
    """
    g = _SwinGraph(s, "g_s")
    y = g.add("Cast", [INPUT], to=FLOAT)
    p16 = g.linear(g.unshuffle(g.whole_cells(y)), "prompts.stage16.l")
    p8 = g.kept(g.shuffle(g.linear(p16, "prompts.stage8.l")), KEPT[0])
    p4 = g.kept(g.shuffle(g.linear(p8, "prompts.stage4.l")), KEPT[1])
    deep = g.stage(g.linear(g.channels(y, 0, s.c16), "first"), p16, "stage16", s.c16)
    x = g.kept(g.add("Concat", [deep, g.channels(y, s.c16, s.M)], axis=2), KEPT[0])
    x = g.stage(g.shuffle(g.linear(x, "up8.l")), p8, "stage8", s.c8)
    x = g.shuffle(g.linear(g.kept(x, KEPT[1]), "up4.l"))
    x = g.linear(g.kept(g.stage(x, p4, "stage4", s.c4), KEPT[2]), "patch.l")
    # Rounds half to even and saturates, as numpy's rint and clip do.
    zero = g.constant(np.zeros((), np.uint8))
    g.add("QuantizeLinear", [x, g.number(1), zero], output=OUTPUT)
    inputs: Specs = {INPUT: (INT16, ("h", "w", s.M))}
    kept: Specs = {f"{name}.{end}": (INT64, (2,)) for name in KEPT for end in ("begin", "end")}
    outputs: Specs = {OUTPUT: (UINT8, ("h4", "w4", SAMPLES))}
    return g.serialise("g_s", {**inputs, **kept}, outputs, weights)


class _SwinGraph(Graph):
    """A graph that knows the layers of nets/swin.py."""

    def __init__(self, sizes: SwinSizes, net: str) -> None:
        super().__init__()
        self._layers, self._net = sizes.layers, net

    def linear(self, x: str, name: str) -> str:
        """Append a Linear over the channels."""
        name = f"{self._net}.{name}"
        return self.add("Add", [self.add("MatMul", [x, f"{name}.weight"]), f"{name}.bias"])

    def leaky(self, x: str) -> str:
        return self.add("LeakyRelu", [x], alpha=LEAK)

    def channels(self, x: str, begin: int, end: int) -> str:
        """Some of the channels."""
        return self.add("Slice", [x, *map(self.integers, (begin, end, 2))])

    def kept(self, x: str, name: str) -> str:
        """The part of the grid that an input names."""
        return self.add("Slice", [x, f"{name}.begin", f"{name}.end", self.integers(0, 1)])

    def unshuffle(self, x: str) -> str:
        """Move 2×2 cells into channels."""
        x = self.add("Transpose", [self._in_cells(x)], perm=(0, 2, 1, 3, 4))
        return self.reshape(x, 0, 0, -1)

    def largest(self, x: str) -> str:
        """The maximum of each channel in 2×2 cells."""
        return self.add("ReduceMax", [self._in_cells(x)], axes=(1, 3), keepdims=0)

    def _in_cells(self, x: str) -> str:
        """[h, w, C] -> [h/2, 2, w/2, 2, C]."""
        two = self.integers(2)
        rows, columns = (
            self.add("Div", [self.add("Shape", [x], start=axis, end=axis + 1), two])
            for axis in (0, 1)
        )
        shape = self.add("Concat", [rows, two, columns, two, self.integers(-1)], axis=0)
        return self.add("Reshape", [x, shape])

    def shuffle(self, x: str) -> str:
        """Move channels into 2×2 cells."""
        grid = self.add("Mul", [self.grid(x), self.integers(2)])
        x = self.add("Transpose", [self.reshape(x, 0, 0, 2, 2, -1)], perm=(0, 2, 1, 3, 4))
        return self.add("Reshape", [x, self.add("Concat", [grid, self.integers(-1)], axis=0)])

    def whole_cells(self, x: str) -> str:
        """Repeat the last row and column of a grid with odd sides."""
        odd = self.add("Mod", [self.grid(x), self.integers(2)])
        pads = self.add("Concat", [self.integers(0, 0, 0), odd, self.integers(0)], axis=0)
        return self.add("Pad", [x, pads], mode="edge")

    def stage(self, x: str, prompts: str, name: str, channels: int) -> str:
        """Append the attention layers of a stage."""
        for i in range(self._layers):
            if i:
                prompts = self._pooled(prompts)
            layer = f"{self._net}.{name}.layers.{i}"
            x = _LayerGraph(self, layer, channels).append(x, prompts, SHIFT * (i % 2))
        return x

    def _pooled(self, prompts: str) -> str:
        """The maximum of 3×3 prompts."""
        axis = self.integers(0)
        planes = self.add("Transpose", [self.add("Unsqueeze", [prompts, axis])], perm=(0, 3, 1, 2))
        pooled = self.add("MaxPool", [planes], kernel_shape=(3, 3), pads=(1, 1, 1, 1))
        rows = self.add("Transpose", [pooled], perm=(0, 2, 3, 1))
        return self.add("Squeeze", [rows, axis])

    def grid(self, x: str) -> str:
        """Rows and columns."""
        return self.add("Shape", [x], end=2)

    def reshape(self, x: str, *shape: int) -> str:
        return self.add("Reshape", [x, self.integers(*shape)])


class _LayerGraph:
    """A SwinLayer in a graph."""

    def __init__(self, graph: _SwinGraph, name: str, channels: int) -> None:
        self._g, self._name, self._channels = graph, name, channels
        self._heads = channels // HEAD

    def append(self, x: str, prompts: str, shift: int) -> str:
        """Append the layer for tokens [h, w, C] and prompts [ceil(h/2), ceil(w/2), C]."""
        g = self._g
        size, before = g.grid(x), g.integers(shift, shift)
        after = g.add("Mod", [g.add("Neg", [g.add("Add", [size, before])]), g.integers(WINDOW)])
        whole = g.add("Add", [g.add("Add", [size, before]), after])
        half, half_before = g.add("Div", [whole, g.integers(2)]), g.integers(shift // 2, shift // 2)
        more = g.add("Sub", [g.add("Sub", [half, half_before]), g.grid(prompts)])
        sequences = [
            *self._rows(x, shift, after, WINDOW),
            *self._rows(prompts, shift // 2, more, WINDOW // 2),
        ]
        rows = g.scan(sequences, self._row)
        rest = g.add("Shape", [rows], start=2)
        out = g.add("Reshape", [rows, g.add("Concat", [g.integers(-1), rest], axis=0)])
        end = g.add("Add", [size, before])
        return g.add("Slice", [out, before, end, g.integers(0, 1)])

    def _rows(self, x: str, before: int, after: str, side: int) -> tuple[str, str]:
        """A padded grid [rows of windows, side, columns, C], and the mask of what is padding."""
        g = self._g
        ends = [g.integers(before, before, 0), after, g.integers(0)]
        pads = g.add("Concat", ends, axis=0)
        shape = g.add("Concat", [g.grid(x), g.integers(1)], axis=0)
        mask = g.add("Pad", [g.add("ConstantOfShape", [shape]), pads, g.number(UNSEEN)])
        out = []
        for padded in (g.add("Pad", [x, pads]), mask):
            rest = g.add("Shape", [padded], start=1)
            target = g.add("Concat", [g.integers(-1, side), rest], axis=0)
            out.append(g.add("Reshape", [padded, target]))
        return out[0], out[1]

    def _row(self, x: str, mask: str, prompts: str, prompt_mask: str) -> str:
        """A row of windows [WINDOW, columns, C], whose prompts have half its sides."""
        g = self._g
        x = g.reshape(x, -1, self._channels)
        t, p = self._normed(x), g.reshape(prompts, -1, self._channels)
        q = self._in_heads(self._gemm(t, "q"), WINDOW)
        sides = ((t, WINDOW), (p, WINDOW // 2))
        k = [self._in_heads(self._gemm(x, "k"), side, transposed=True) for x, side in sides]
        v = [self._in_heads(self._gemm(x, "v"), side) for x, side in sides]
        masks = [self._mask(m, side) for m, side in ((mask, WINDOW), (prompt_mask, WINDOW // 2))]
        logits = g.add("MatMul", [q, g.add("Concat", k, axis=3)])
        logits = g.add("Add", [logits, f"{self._name}.logits"])
        logits = g.add("Add", [logits, g.add("Concat", masks, axis=3)])
        weights = g.add("Softmax", [logits], axis=-1)
        mixed = g.add("MatMul", [weights, g.add("Concat", v, axis=2)])
        mixed = g.reshape(mixed, 0, self._heads, WINDOW, WINDOW, HEAD)
        mixed = g.add("Transpose", [mixed], perm=(2, 0, 3, 1, 4))
        x = g.add("Add", [x, self._gemm(g.reshape(mixed, -1, self._channels), "out")])
        t = self._gemm(g.leaky(self._gemm(self._normed(x), "f1")), "f2")
        return g.reshape(g.add("Add", [x, t]), WINDOW, -1, self._channels)

    def _normed(self, x: str) -> str:
        return self._g.add("LayerNormalization", [x, f"ones.{self._channels}"], axis=-1)

    def _gemm(self, x: str, part: str) -> str:
        name = f"{self._name}.{part}"
        return self._g.add("Gemm", [x, f"{name}.weight", f"{name}.bias"])

    def _in_heads(self, x: str, side: int, transposed: bool = False) -> str:
        """[side · columns, C] -> [windows, heads, side², HEAD], or with the last two exchanged."""
        g = self._g
        x = g.reshape(x, side, -1, side, self._heads, HEAD)
        perm = (1, 3, 4, 0, 2) if transposed else (1, 3, 0, 2, 4)
        ends = (HEAD, side * side) if transposed else (side * side, HEAD)
        return g.reshape(g.add("Transpose", [x], perm=perm), 0, self._heads, *ends)

    def _mask(self, mask: str, side: int) -> str:
        """[side, columns, 1] -> [windows, 1, 1, side²]."""
        g = self._g
        x = g.add("Transpose", [g.reshape(mask, side, -1, side)], perm=(1, 0, 2))
        return g.reshape(x, 0, 1, 1, side * side)
