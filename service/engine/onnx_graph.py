"""g_s as an ONNX graph: a function of the backbone's sizes alone; one serves all rates and updates.

Everything is NCHW and every Linear a 1×1 Conv, which lets ONNX Runtime keep whole runs of layers in
its blocked layout with activations and sums fused; of the forms that were tried it is the fastest.
"""

from __future__ import annotations

from service.codec.fixed_point import LEAK
from service.codec.sizes import Sizes
from service.engine.onnx_proto import FLOAT, INT16, UINT8, Graph

INPUT, OUTPUT = "y_hat", "pixels"


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
    g = Graph()
    up2, up8 = _ups(s)
    stages = dict(_blocks(s))
    x = g.add("Transpose", [g.add("Cast", [INPUT], to=FLOAT)], perm=(0, 3, 1, 2))
    x = _conv(g, x, "g_s.0")
    for name, c in list(stages.items())[: s.nd16]:
        x = _block(g, x, name, c)
    x = g.add("DepthToSpace", [_conv(g, x, up2)], blocksize=2, mode="DCR")
    # A maximum over one sample changes nothing, but it is a layer that ONNX Runtime has in its
    # blocked layout: without one here, no sum of the blocks below would be fused into a Conv.
    x = g.add("MaxPool", [x], kernel_shape=(1, 1))
    for name, c in list(stages.items())[s.nd16 :]:
        x = _block(g, x, name, c)
    # Rounds half to even and saturates, as numpy's rint and clip do.
    x = g.add("QuantizeLinear", [_conv(g, x, up8), g.number(1.0), g.zero_byte()])
    g.add("Transpose", [x], perm=(0, 2, 3, 1), output=OUTPUT)
    return g.model(
        "g_s",
        {INPUT: (INT16, (1, "h", "w", s.M))},
        {OUTPUT: (UINT8, (1, "h2", "w2", 3 * 64))},
        weight_shapes(s),
    )


def _blocks(s: Sizes) -> list[tuple[str, int]]:
    """Name and channels of every block, in order."""
    first = [(f"g_s.{1 + i}", s.M) for i in range(s.nd16)]
    return first + [(f"g_s.{2 + s.nd16 + i}", s.c8) for i in range(s.nd8)]


def _ups(s: Sizes) -> tuple[str, str]:
    """Names of the layers before the two shuffles."""
    return f"g_s.{1 + s.nd16}.l", f"g_s.{2 + s.nd16 + s.nd8}.l"


def _conv(g: Graph, x: str, name: str) -> str:
    """A Linear layer."""
    return g.add("Conv", [x, f"{name}.weight", f"{name}.bias"], kernel_shape=(1, 1))


def _block(g: Graph, x: str, name: str, channels: int) -> str:
    """x + pw2(dw(leaky(pw1 x))), then x + f2(leaky(f1 x))."""
    t = _leaky(g, _conv(g, x, f"{name}.pw1"))
    dw = [t, f"{name}.dw.weight", f"{name}.dw.bias"]
    t = g.add("Conv", dw, kernel_shape=(3, 3), pads=(1, 1, 1, 1), group=channels)
    x = g.add("Add", [_conv(g, t, f"{name}.pw2"), x])
    t = _leaky(g, _conv(g, x, f"{name}.f1"))
    return g.add("Add", [_conv(g, t, f"{name}.f2"), x])


def _leaky(g: Graph, x: str) -> str:
    return g.add("LeakyRelu", [x], alpha=LEAK)
