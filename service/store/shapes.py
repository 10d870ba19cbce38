"""Names and shapes of the stored transforms, which follow from the sizes of the backbone.

Those of the preview network follow from its own tensors and M.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.codec.sizes import Sizes
from service.codec.tiles import PATCH, SCALES
from service.errors import StoreError

Shapes = dict[str, tuple[int, ...]]

MAX_PREVIEW_CHANNELS, MAX_PREVIEW_BLOCKS = 512, 4
"""Largest trunk of a preview network that is read; its work would be that of the synthesis."""


def check_transforms(tensors: Mapping[str, NDArray[Any]], sizes: Sizes) -> None:
    """Raise StoreError where a tensor of the transforms is missing, unknown or of a wrong shape."""
    _check(tensors, transform_shapes(sizes))


def check_previews(tensors: Mapping[str, NDArray[Any]], sizes: Sizes) -> None:
    """Raise StoreError unless the tensors are those of a preview network for such latents."""
    first = tensors.get("trunk.0.weight")
    if first is None or first.ndim != 2:
        raise StoreError("the preview network has no matrix trunk.0.weight")
    channels, blocks = first.shape[0], preview_blocks(tensors)
    if not 1 <= channels <= MAX_PREVIEW_CHANNELS or blocks > MAX_PREVIEW_BLOCKS:
        raise StoreError(
            f"the preview network has {channels} channels and {blocks} blocks, "
            f"expected 1 to {MAX_PREVIEW_CHANNELS} and at most {MAX_PREVIEW_BLOCKS}"
        )
    _check(tensors, preview_shapes(sizes.M, channels, blocks))
    for name, tensor in tensors.items():
        if tensor.dtype != np.float16 or not np.isfinite(tensor).all():
            raise StoreError(f"{name} of the preview network is not of finite float16")


def _check(tensors: Mapping[str, NDArray[Any]], expected: Shapes) -> None:
    found = {name: tensor.shape for name, tensor in tensors.items()}
    wrong = {name for name, _ in found.items() ^ expected.items()}
    if wrong:
        raise StoreError(f"the stored tensors {', '.join(sorted(wrong))} do not fit the sizes")


def preview_blocks(tensors: Mapping[str, NDArray[Any]]) -> int:
    """How many blocks the trunk of a preview network has."""
    return sum(re.fullmatch(r"trunk\.[0-9]+\.dw\.weight", name) is not None for name in tensors)


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
    return _shapes(linears, blocks)


def preview_shapes(M: int, channels: int, blocks: int) -> Shapes:
    """Shape of every tensor of a preview network, named as in nets/previews.py."""
    linears = {f"head.{s}.l": (3 * (PATCH // s) ** 2, channels) for s in SCALES}
    trunk = {f"trunk.{1 + i}": channels for i in range(blocks)}
    return _shapes({"trunk.0": (channels, M), **linears}, trunk)


def _shapes(linears: dict[str, tuple[int, int]], blocks: dict[str, int]) -> Shapes:
    """Shapes of the weights and biases of linear layers and blocks."""
    shapes: Shapes = {}
    for name, c in blocks.items():
        linears |= {f"{name}.{part}": (c, c) for part in ("pw1", "pw2")}
        linears |= {f"{name}.f1": (2 * c, c), f"{name}.f2": (c, 2 * c)}
        shapes |= {f"{name}.dw.weight": (c, 1, 3, 3), f"{name}.dw.bias": (c,)}
    for name, (outputs, inputs) in linears.items():
        shapes |= {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}
    return shapes
