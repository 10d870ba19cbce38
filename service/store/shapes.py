"""Names and shapes of the stored transforms, which follow from the sizes of the backbone.

Those of the preview network follow from its own tensors and M.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.codec.sizes import (
    FEATURES,
    HEAD,
    WINDOW,
    ConvSizes,
    Sizes,
    SwinSizes,
    conv_sizes,
)
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


def check_prompts(tensors: Mapping[str, NDArray[Any]], sizes: Sizes) -> None:
    """Raise StoreError unless the tensors are those of prompt generators for a backbone."""
    if not isinstance(sizes, SwinSizes):
        raise StoreError(f"prompts are for a backbone of family {SwinSizes.family}, not this one")
    _check(tensors, prompt_shapes(sizes))
    for name, tensor in tensors.items():
        if tensor.dtype != np.float16 or not np.isfinite(tensor).all():
            raise StoreError(f"{name} of the prompts is not of finite float16")


def _check(tensors: Mapping[str, NDArray[Any]], expected: Shapes) -> None:
    found = {name: tensor.shape for name, tensor in tensors.items()}
    wrong = {name for name, _ in found.items() ^ expected.items()}
    if wrong:
        raise StoreError(f"the stored tensors {', '.join(sorted(wrong))} do not fit the sizes")


def preview_blocks(tensors: Mapping[str, NDArray[Any]]) -> int:
    """How many blocks the trunk of a preview network has."""
    return sum(re.fullmatch(r"trunk\.[0-9]+\.dw\.weight", name) is not None for name in tensors)


def transform_shapes(s: Sizes) -> Shapes:
    """Shape of every tensor of g_a, g_s and h_a, by its name in the networks of nets/."""
    hyper = {
        "h_a.0": (s.cp, s.M),
        "h_a.2.l": (s.Cz, 4 * s.cp),
        "h_a.4.l": (s.Cz, 4 * s.Cz),
        "h_a.5": (s.Cz, s.Cz),
    }
    shapes = _shapes(hyper, {"h_a.1": s.cp, "h_a.3": s.Cz})
    if isinstance(s, SwinSizes):
        return shapes | _swin_shapes(s)
    return shapes | _conv_shapes(conv_sizes(s))


def _conv_shapes(s: ConvSizes) -> Shapes:
    down, up, cell = 1 + s.ne8, 1 + s.nd16, 3 * 8 * 8  # samples of 8×8 pixels
    linears = {
        "g_a.0.l": (s.c8, cell),
        f"g_a.{down}.l": (s.M, 4 * s.c8),
        f"g_a.{down + s.ne16 + 1}": (s.c16, s.c16),
        "g_s.0": (s.c16, s.c16),
        f"g_s.{up}.l": (4 * s.c8, s.M),
        f"g_s.{up + s.nd8 + 1}.l": (cell, s.c8),
    }
    blocks = {f"g_a.{place}": s.c8 for place in range(1, down)}
    blocks |= {f"g_a.{down + place}": s.c16 for place in range(1, s.ne16 + 1)}
    blocks |= {f"g_s.{place}": s.c16 for place in range(1, up)}
    blocks |= {f"g_s.{up + place}": s.c8 for place in range(1, s.nd8 + 1)}
    return _shapes(linears, blocks)


def _swin_shapes(s: SwinSizes) -> Shapes:
    cell = 3 * 4 * 4  # samples of 4×4 pixels
    linears = {
        "g_a.patch.l": (s.c4, cell),
        "g_a.down8.l": (s.c8, 4 * s.c4),
        "g_a.down16.l": (s.M, 4 * s.c8),
        "g_a.last": (s.c16, s.c16),
        "g_s.first": (s.c16, s.c16),
        "g_s.up8.l": (4 * s.c8, s.M),
        "g_s.up4.l": (4 * s.c4, s.c8),
        "g_s.patch.l": (cell, s.c4),
    }
    positions: Shapes = {}
    for net, (stage, c), i in product(
        ("g_a", "g_s"), {"stage4": s.c4, "stage8": s.c8, "stage16": s.c16}.items(), range(s.layers)
    ):
        name = f"{net}.{stage}.layers.{i}"
        linears |= {f"{name}.qkv": (3 * c, c), f"{name}.out": (c, c)}
        linears |= {f"{name}.f1": (4 * c, c), f"{name}.f2": (c, 4 * c)}
        positions[f"{name}.position"] = (c // HEAD, (2 * WINDOW - 1) ** 2)
    return _shapes(linears, {}) | positions


def prompt_shapes(s: SwinSizes) -> Shapes:
    """Shape of every tensor of the prompt generators, by its name in nets/prompts.py."""
    linears = {
        "g_a.prompts.patch.l": (FEATURES, 3 * 4 * 4),
        "g_a.prompts.up.l": (4, FEATURES),
        "g_a.prompts.stage4.l": (s.c4, 4),
        "g_a.prompts.stage8.l": (s.c8, 4 * s.c4),
        "g_a.prompts.stage16.l": (s.c16, 4 * s.c8),
        "g_s.prompts.stage16.l": (s.c16, 4 * s.M),
        "g_s.prompts.stage8.l": (4 * s.c8, s.c16),
        "g_s.prompts.stage4.l": (4 * s.c4, s.c8),
    }
    return _shapes(linears, {})


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
