"""The colours of numbers: viridis (van der Walt & Smith), whose lightness grows evenly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.picture import U8

F32 = NDArray[np.float32]

VIRIDIS: Final = (
    (68, 1, 84),
    (72, 40, 120),
    (62, 74, 137),
    (49, 104, 142),
    (38, 130, 142),
    (31, 158, 137),
    (53, 183, 121),
    (109, 205, 89),
    (180, 222, 44),
    (253, 231, 37),
)
"""Colours at even distances, with straight lines between them."""

NOTHING: Final = (214, 214, 214)
"""Colour of places that have no number."""

COVERED: Final = 0.995
"""Share of the numbers that a scale covers: few have several times as much as all others."""

TICK_DISTANCE: Final = 0.12
"""Least distance of two ticks, in lengths of the scale."""


@dataclass(frozen=True)
class ColourScale:
    """A scale from 0 to `top`; larger numbers have the colour of `top`.

    The colour grows with the square root, so that small numbers differ to the eye.

    Attributes:
        unit: of the numbers. factor: of the numbers on the ticks, such as 100 for percent.
    """

    top: float
    unit: str
    factor: float = 1.0

    @classmethod
    def of(cls, numbers: Sequence[F32], unit: str, factor: float = 1.0) -> ColourScale:
        """The scale for all of some arrays together, without numbers that are NaN."""
        every = np.concatenate([n[~np.isnan(n)] for n in numbers])
        top = float(np.quantile(every, COVERED)) if every.size else 0.0
        return cls(top if top > 0 else 1 / factor, unit, factor)

    def colours(self, numbers: NDArray[Any]) -> U8:
        """The colours of numbers [h, w], NaN for none: [h, w, 3] uint8."""
        shares = np.sqrt(np.clip(np.nan_to_num(numbers) / self.top, 0, 1))
        places = np.linspace(0, 1, len(VIRIDIS))
        channels = [np.interp(shares, places, channel) for channel in zip(*VIRIDIS, strict=True)]
        rgb: U8 = np.stack(channels, -1).round().astype(np.uint8)
        rgb[np.isnan(numbers)] = NOTHING
        return rgb

    def ticks(self) -> list[tuple[float, str]]:
        """Share of the scale's length, and text, of some round numbers from 0 to the top."""
        top, ticks = self.top * self.factor, [(0.0, "0")]
        power = math.floor(math.log10(top))
        rounds = (digit * 10.0**p for p in (power, power - 1, power - 2) for digit in (5, 2, 1))
        above = 1 + TICK_DISTANCE
        for number in rounds:
            share = math.sqrt(number / top)
            if TICK_DISTANCE <= share <= min(1, above - TICK_DISTANCE):
                ticks.append((share, f"{number:g}"))
                above = share
        return ticks


def sample(numbers: F32, extent: tuple[float, float], size: tuple[int, int]) -> F32:
    """The means of numbers over the pixels of a picture of them.

    Args:
        numbers: [h, w], NaN for none; these are left out of the means.
        extent: columns and rows that the picture shows, from the left and the top.
        size: width and height of the picture.

    Returns:
        [size[1], size[0]]; NaN where most of a pixel has no number.
    """
    box = (0.0, 0.0, *extent)
    known = ~np.isnan(numbers)
    parts = [np.nan_to_num(numbers), known.astype(np.float32)]
    sums, shares = (
        np.asarray(Image.fromarray(part).resize(size, Image.Resampling.BOX, box)) for part in parts
    )
    means: F32 = np.where(shares >= 0.5, sums / np.maximum(shares, 1e-6), np.nan)
    return means.astype(np.float32)
