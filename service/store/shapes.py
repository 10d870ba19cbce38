"""Names and shapes of the stored transforms, which follow from the sizes of the backbone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from service.codec.sizes import Sizes
from service.errors import StoreError

Shapes = dict[str, tuple[int, ...]]


def check_transforms(tensors: Mapping[str, NDArray[Any]], sizes: Sizes) -> None:
    """Raise StoreError where a tensor of the transforms is missing, unknown or of a wrong shape."""
    expected = transform_shapes(sizes)
    found = {name: tensor.shape for name, tensor in tensors.items()}
    wrong = {name for name, _ in found.items() ^ expected.items()}
    if wrong:
        raise StoreError(f"the stored tensors {', '.join(sorted(wrong))} do not fit the sizes")


def transform_shapes(s: Sizes) -> Shapes:
    """Shape of every tensor of g_a, g_s and h_a, named by their places as in nets/backbone.py."""
    down, up, cell = 1 + s.ne8, 1 + s.nd16, 3 * 8 * 8  # samples of 8×8 pixels
    linears = {
        "g_a.0.l": (s.c8, cell),
        f"g_a.{down}.l": (s.M, 4 * s.c8),
        f"g_a.{down + s.ne16 + 1}": (s.c16, s.c16),
        "g_s.0": (s.c16, s.c16),
        f"g_s.{up}.l": (4 * s.c8, s.M),
        f"g_s.{up + s.nd8 + 1}.l": (cell, s.c8),
        "h_a.0": (s.cp, s.M),
        "h_a.2.l": (s.Cz, 4 * s.cp),
        "h_a.4.l": (s.Cz, 4 * s.Cz),
        "h_a.5": (s.Cz, s.Cz),
    }
    blocks = {f"g_a.{place}": s.c8 for place in range(1, down)}
    blocks |= {f"g_a.{down + place}": s.c16 for place in range(1, s.ne16 + 1)}
    blocks |= {f"g_s.{place}": s.c16 for place in range(1, up)}
    blocks |= {f"g_s.{up + place}": s.c8 for place in range(1, s.nd8 + 1)}
    blocks |= {"h_a.1": s.cp, "h_a.3": s.Cz}
    shapes: Shapes = {}
    for name, c in blocks.items():
        linears |= {f"{name}.{part}": (c, c) for part in ("pw1", "pw2")}
        linears |= {f"{name}.f1": (2 * c, c), f"{name}.f2": (c, 2 * c)}
        shapes |= {f"{name}.dw.weight": (c, 1, 3, 3), f"{name}.dw.bias": (c,)}
    for name, (outputs, inputs) in linears.items():
        shapes |= {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}
    return shapes
