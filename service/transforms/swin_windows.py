"""Which tokens and prompts the Swin family works on: parts of windows, and whether a rate has any.

Layers of nets/swin.py come in pairs, the second with shifted attention windows. So tokens depend on
those of whole windows around them: `StageBoxes` are what each stage of g_s needs for a part of a
window of latents, and what it can leave out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from service.codec.sizes import SHIFT, WINDOW
from service.codec.tiles import Box
from service.store.model import StoredModel, Tensors


@dataclass(frozen=True)
class StageBoxes:
    """Parts of the tokens of g_s, which are at 1/16, at 1/8 and at 1/4 of the resolution.

    Attributes:
        read16: the latents that are read, in the window of latents.
        kept16: what is kept of them after the stage at 1/16, in coordinates of `read16`.
        kept8, kept4: likewise after the stages at 1/8 and 1/4, in coordinates of what they get.
    """

    read16: Box
    kept16: Box
    kept8: Box
    kept4: Box

    @classmethod
    def of(cls, inner: Box, window: Box, layers: int) -> StageBoxes:
        """The parts that give the pixels under `inner`, a part of a window of latents."""
        read4 = stage_reads(inner.scaled(4), window.scaled(4), layers)
        kept8 = read4.cells(2)
        read8 = stage_reads(kept8, window.scaled(2), layers)
        kept16 = read8.cells(2)
        read16 = stage_reads(kept16, window, layers)
        return cls(
            read16,
            kept16.relative(read16),
            kept8.relative(read8),
            inner.scaled(4).relative(read4),
        )


def stage_reads(tokens: Box, grid: Box, layers: int) -> Box:
    """The tokens that a stage reads to compute some: whole windows, cut at the edge of the grid."""
    for _ in range(layers // 2):
        tokens = tokens.grown(SHIFT, grid).cells(WINDOW).scaled(WINDOW).cut(grid)
    return tokens


def spans(length: int, shift: int) -> Iterator[slice]:
    """Cut an axis of tokens into parts whose windows are of one length, WINDOW or what is left."""
    first = min(shift, length)
    whole = first + (length - first) // WINDOW * WINDOW
    for begin, end in ((0, first), (first, whole), (whole, length)):
        if begin < end:
            yield slice(begin, end)


def has_prompts(model: StoredModel, net: str) -> bool:
    """Whether the model has prompts of g_a or g_s, and their weight is not 0."""
    log_weight = model.transforms.get(f"{net}.prompts.log_weight")
    return log_weight is not None and bool(log_weight > -np.inf)


def weights_of(model: StoredModel, net: str) -> Tensors:
    """The weights of g_a or g_s, with those of prompts where they have an effect."""
    own = {n: t for n, t in model.transforms.items() if n.startswith(f"{net}.")}
    if has_prompts(model, net):
        return own
    return {n: t for n, t in own.items() if not n.startswith(f"{net}.prompts.")}
