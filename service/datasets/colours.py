"""Random choices and colours of procedural pictures."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import Final, TypeVar

import numpy as np

Colour = tuple[int, int, int]
T = TypeVar("T")

WHITE: Final[Colour] = (255, 255, 255)
BLACK: Final[Colour] = (0, 0, 0)

CORNERS: Final[tuple[Colour, ...]] = (
    (255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 255, 255), (255, 0, 255), (255, 255, 0),
)  # fmt: skip
"""The saturated corners of the colour cube."""


class Rng(np.random.Generator):
    """NumPy's generator, with the choices that drawing needs."""

    def chance(self, probability: float) -> bool:
        """Return True with that probability."""
        return bool(self.random() < probability)

    def whole(self, low: float, high: float) -> int:
        """A whole number from `low` to `high`, both included."""
        return int(self.integers(int(low), max(int(low), int(high)) + 1))

    def pick(self, options: Sequence[T]) -> T:
        """One of the options, all equally likely."""
        return options[int(self.integers(len(options)))]

    def hue(self, saturation: float, value: float) -> Colour:
        """A colour of random hue; saturation and value are from 0 to 1."""
        r, g, b = colorsys.hsv_to_rgb(self.random(), saturation, value)
        return round(255 * r), round(255 * g), round(255 * b)

    def any_colour(self) -> Colour:
        """White, black, a grey, a corner of the colour cube, or any colour."""
        k = self.random()
        if k < 0.2:
            return WHITE
        if k < 0.32:
            return BLACK
        if k < 0.45:
            return grey(self.whole(0, 255))
        if k < 0.65:
            return self.pick(CORNERS)
        if k < 0.8:
            return self.hue(self.uniform(0.3, 1), self.uniform(0.4, 1))
        r, g, b = (int(v) for v in self.integers(0, 256, 3))
        return r, g, b

    def palette(self, count: int) -> list[Colour]:
        """Colours of similar strength, as a designer would choose them."""
        saturation, value = self.uniform(0.2, 1), self.uniform(0.5, 1)
        start, turn = self.random(), self.uniform(0.08, 0.4)
        out = []
        for k in range(count):
            s = float(np.clip(saturation + self.uniform(-0.2, 0.2), 0, 1))
            v = float(np.clip(value + self.uniform(-0.25, 0.2), 0, 1))
            rgb = colorsys.hsv_to_rgb((start + k * turn) % 1, s, v)
            out.append((round(255 * rgb[0]), round(255 * rgb[1]), round(255 * rgb[2])))
        return out


def grey(level: float) -> Colour:
    """The grey of that level, 0 to 255."""
    return (int(level),) * 3


def luminance(colour: Colour) -> float:
    """Rec. 601 luma of a colour, 0 to 255."""
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]


def mixed(a: Colour, b: Colour, share: float) -> Colour:
    """The colour between `a` (share 0) and `b` (share 1)."""
    r, g, b_ = (round(p + (q - p) * share) for p, q in zip(a, b, strict=True))
    return r, g, b_
