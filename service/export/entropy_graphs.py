"""The entropy networks as ONNX graphs: what codec/fixed_point.py computes, in the same integers.

Every partial sum of a layer is exact in float32 (see there), so the order in which a library adds,
and whether it fuses, cannot change a result. One graph is of h_s and step 0, one of each further
step. Activations are rows [positions, channels]; only the depthwise layers see the grid.

A step's first layer reads all channels of y_hat at every position, with zeros for what is not known
yet: an eighth more products than codec/entropy_model.py takes, but large ones.
"""

from __future__ import annotations

from service.codec.entropy_model import LEVELS, MU_MAX, STEPS
from service.codec.fixed_point import ACTIVATION_MAX, LEAK
from service.codec.sizes import Sizes
from service.export.graph import FLOAT, INT32, INT64, UINT8, Graph, Specs, Weights
from service.transforms.entropy_onnx import CONTEXT, LEVEL, MU, SHAPE, SIZE, Z_HAT, Z_SHAPE, P

_RANGES = ((MU, -MU_MAX, MU_MAX), (LEVEL, 0, LEVELS - 1))
"""Output, least and largest value of each half of a head's rows."""

_ALL = 2**62
"""The end of an axis."""

_PARAMETERS: Specs = {MU: (INT32, ("B", "n")), LEVEL: (UINT8, ("B", "n"))}


def features_graph(s: Sizes, weights: Weights) -> bytes:
    """Build h_s and step 0: z_hat -> P, and the parameters of step 0."""
    g = _EntropyGraph(s)
    half, whole = g.scaled(Z_SHAPE, 2), g.scaled(Z_SHAPE, 4)
    x = g.block(g.shuffle2(g.gemm(Z_HAT, "h_s.0"), Z_SHAPE, s.Cz), "h_s.1", half, s.Cz)
    x = g.block(g.shuffle2(g.gemm(x, "h_s.2"), half, s.cp), "h_s.3", whole, s.cp)
    places = [g.integers(0, 0), SIZE, g.integers(1, 2)]
    g.parameters(g.add("Slice", [g.on_grid(x, whole), *places], output=P), "step.0.head", Z_SHAPE)
    inputs: Specs = {Z_HAT: (FLOAT, ("n", s.Cz)), Z_SHAPE: (INT64, (3,)), SIZE: (INT64, (2,))}
    outputs: Specs = {P: (FLOAT, ("B", "H", "W", s.cp)), **_PARAMETERS}
    return g.serialise("h_s", inputs, outputs, weights)


def step_graph(s: Sizes, name: str, weights: Weights) -> bytes:
    """Build a further step, "step.1" to "step.3": P and known y_hat -> the step's parameters."""
    g = _EntropyGraph(s)
    x = g.gemm(g.rows(P), f"{name}.first")
    x = g.add("Gemm", [g.rows(CONTEXT), f"{name}.first.context", x])
    x = g.block(g.settle(x), f"{name}.block", SHAPE, s.cc)
    g.parameters(g.on_grid(x, SHAPE), f"{name}.head", SHAPE)
    grid = ("B", "H", "W")
    inputs: Specs = {
        P: (FLOAT, (*grid, s.cp)),
        CONTEXT: (FLOAT, (*grid, s.M)),
        SHAPE: (INT64, (3,)),
    }
    return g.serialise(name, inputs, _PARAMETERS, weights)


class _EntropyGraph(Graph):
    """A graph that knows the layers of fixed_point.py by the same names."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self._quarter = sizes.M // 4
        self._low, self._high = self.number(-ACTIVATION_MAX), self.number(ACTIVATION_MAX)

    def gemm(self, x: str, name: str) -> str:
        """Layer.accumulate."""
        return self.add("Gemm", [x, f"{name}.weight", f"{name}.bias"])

    def settle(self, x: str) -> str:
        """Round down and clip."""
        return self.add("Clip", [self.add("Floor", [x]), self._low, self._high])

    def leaky(self, x: str, name: str) -> str:
        """Layer.leaky."""
        return self.settle(self.add("LeakyRelu", [self.gemm(x, name)], alpha=LEAK))

    def residual(self, x: str, name: str, skip: str) -> str:
        """Layer.residual."""
        total = self.add("Add", [self.add("Floor", [self.gemm(x, name)]), skip])
        return self.add("Clip", [total, self._low, self._high])

    def depthwise(self, x: str, name: str, shape: str, channels: int) -> str:
        """Depthwise, of rows on a grid."""
        ends = self.integers(0, 1, 1, 0, 0, 1, 1, 0)
        padded = self.add("Pad", [self.on_grid(x, shape), ends], mode="edge")
        planes = self.add("Transpose", [padded], perm=(0, 3, 1, 2))
        conv = [planes, f"{name}.weight", f"{name}.bias"]
        out = self.add("Conv", conv, kernel_shape=(3, 3), group=channels)
        return self.rows(self.add("Transpose", [self.settle(out)], perm=(0, 2, 3, 1)))

    def block(self, x: str, name: str, shape: str, channels: int) -> str:
        """Block, of rows on a grid."""
        hidden = self.depthwise(self.leaky(x, f"{name}.pw1"), f"{name}.dw", shape, channels)
        x = self.residual(hidden, f"{name}.pw2", x)
        return self.residual(self.leaky(x, f"{name}.f1"), f"{name}.f2", x)

    def shuffle2(self, x: str, shape: str, channels: int) -> str:
        """shuffle2, from rows on a grid to rows on one of twice its sides."""
        cells = self.add("Concat", [shape, self.integers(2, 2, channels)], axis=0)
        x = self.add("Reshape", [self.settle(x), cells])
        x = self.add("Transpose", [x], perm=(0, 1, 3, 2, 4, 5))
        return self.add("Reshape", [x, self.integers(-1, channels)])

    def parameters(self, x: str, name: str, shape: str) -> None:
        """MU and LEVEL from a step's head, class by class."""
        batch = self.add("Slice", [shape, self.integers(0), self.integers(1)])
        flat = self.add("Concat", [batch, self.integers(-1)], axis=0)
        halves: dict[str, list[str]] = {MU: [], LEVEL: []}
        for p in range(STEPS):
            corner = self.integers(*divmod(p, 2))
            places = [corner, self.integers(_ALL, _ALL), self.integers(1, 2), self.integers(2, 2)]
            part = self.rows(self.add("Slice", [x, *places]))
            out = self.add("Floor", [self.gemm(part, f"{name}.{p}")])
            for begin, (output, low, high) in enumerate(_RANGES):
                ends = (begin * self._quarter, (begin + 1) * self._quarter)
                half = self.add("Slice", [out, *map(self.integers, (*ends, 1))])
                half = self.add("Clip", [half, self.number(low), self.number(high)])
                halves[output].append(self.add("Reshape", [half, flat]))
        for output, parts in halves.items():
            whole = self.add("Concat", parts, axis=1)
            self.add("Cast", [whole], to=_PARAMETERS[output][0], output=output)

    def on_grid(self, rows: str, shape: str) -> str:
        """Rows as [B, H, W, channels]."""
        whole = self.add("Concat", [shape, self.integers(-1)], axis=0)
        return self.add("Reshape", [rows, whole])

    def rows(self, x: str) -> str:
        """[B, H, W, channels] as rows."""
        return self.add("Flatten", [x], axis=3)

    def scaled(self, shape: str, by: int) -> str:
        """A grid of `by` times the sides."""
        return self.add("Mul", [shape, self.integers(1, by, by)])
