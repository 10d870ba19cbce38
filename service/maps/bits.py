"""The figure of where streams spend their bits: a heat map of the picture for each stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import Image

from service.codec.tiles import PATCH
from service.engine.target import LOSSLESS, rate_text
from service.engine.types import StreamBits
from service.maps.figure import Cell, MapFigure, draw_figure, fitted, framed, small_picture
from service.maps.scale import F32, ColourScale, sample
from service.picture import Picture

UNIT: Final = "bits per pixel"

EXACT: Final = (
    "Grey: blocks that the graphics layer stores exactly. The map does not have its bits."
)


@dataclass(frozen=True, eq=False)
class StreamMap:
    """Where a stream of `size_bytes` bytes spends its bits; `rate` was asked for."""

    rate: float
    spent: StreamBits
    size_bytes: int

    @property
    def density(self) -> F32:
        """Bits per pixel of the picture in each block of 16×16, [h, w]; NaN in exact blocks."""
        spent = self.spent
        rows, columns = (
            np.minimum(PATCH, side - PATCH * np.arange(blocks))
            for side, blocks in zip((spent.height, spent.width), spent.bits.shape, strict=True)
        )
        density = spent.bits / (rows[:, None] * columns)
        return np.where(spent.exact, np.nan, density).astype(np.float32)

    @property
    def title(self) -> str:
        """The rate that was asked for, and whether the picture became lossless instead."""
        texts = dict.fromkeys(
            ("rate " * (r != LOSSLESS) + rate_text(r)) for r in (self.rate, self.spent.rate)
        )
        return ": ".join(texts)

    def facts(self) -> tuple[str, ...]:
        """Size of the stream, and how much of it the map shows where that is not nearly all."""
        pixels = self.spent.width * self.spent.height
        lines = [f"{self.size_bytes:,} bytes, {8 * self.size_bytes / pixels:.3g} bits per pixel"]
        if self.spent.latent_bytes < 0.98 * self.size_bytes:
            latents = f"{self.spent.latent_bytes:,} bytes" if self.spent.latent_bytes else "none"
            lines.append(f"{latents} of these are latents")
        return tuple(lines)


def draw_bits(picture: Picture, maps: Sequence[StreamMap]) -> MapFigure:
    """Draw the picture in small, and the map of each of its streams in the same colours.

    Args:
        picture: the picture, or a smaller one.
    """
    width, height = maps[0].spent.width, maps[0].spent.height
    size, extent = fitted(width, height), (width / PATCH, height / PATCH)
    densities = [sample(one.density, extent, size) for one in maps]
    scale = ColourScale.of(densities, UNIT)
    facts = (f"{width}x{height} pixels",)
    cells = [Cell("picture", facts, framed(small_picture(picture, size)))]
    for one, density in zip(maps, densities, strict=True):
        heat = framed(Image.fromarray(scale.colours(density)))
        cells.append(Cell(one.title, one.facts(), heat))
    notes = [EXACT] if any(one.spent.exact.any() for one in maps) else []
    return draw_figure(cells, scale, notes)
