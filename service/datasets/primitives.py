"""Primitives of procedural pictures: random choices, colours, gradients, smooth shapes.

Pillow draws shapes without anti-aliasing, so `Canvas` draws them larger and reduces them.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Drawing = Image.Image
Rng = np.random.Generator
Colour = tuple[int, int, int]
Point = tuple[float, float]
Rect = tuple[float, float, float, float]
Floats = NDArray[np.floating]
T = TypeVar("T")

WHITE: Final[Colour] = (255, 255, 255)
BLACK: Final[Colour] = (0, 0, 0)

CORNERS: Final[tuple[Colour, ...]] = (
    (255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 255, 255), (255, 0, 255), (255, 255, 0),
)  # fmt: skip
"""The saturated corners of the colour cube."""


def chance(rng: Rng, probability: float) -> bool:
    """Return True with that probability."""
    return bool(rng.random() < probability)


def whole(rng: Rng, low: float, high: float) -> int:
    """A whole number from `low` to `high`, both included."""
    return int(rng.integers(int(low), max(int(low), int(high)) + 1))


def pick(rng: Rng, options: Sequence[T]) -> T:
    """One of the options, all equally likely."""
    return options[int(rng.integers(len(options)))]


def hue(rng: Rng, saturation: float, value: float) -> Colour:
    """A colour of random hue; saturation and value are from 0 to 1."""
    r, g, b = colorsys.hsv_to_rgb(rng.random(), saturation, value)
    return round(255 * r), round(255 * g), round(255 * b)


def grey(level: float) -> Colour:
    """The grey of that level, 0 to 255."""
    return (int(level),) * 3


def any_colour(rng: Rng) -> Colour:
    """White, black, a grey, a corner of the colour cube, or any colour."""
    k = rng.random()
    if k < 0.2:
        return WHITE
    if k < 0.32:
        return BLACK
    if k < 0.45:
        return grey(whole(rng, 0, 255))
    if k < 0.65:
        return pick(rng, CORNERS)
    if k < 0.8:
        return hue(rng, rng.uniform(0.3, 1), rng.uniform(0.4, 1))
    r, g, b = (int(v) for v in rng.integers(0, 256, 3))
    return r, g, b


def palette(rng: Rng, count: int) -> list[Colour]:
    """Colours of similar strength, as a designer would choose them."""
    saturation, value = rng.uniform(0.2, 1), rng.uniform(0.5, 1)
    start, turn = rng.random(), rng.uniform(0.08, 0.4)
    out = []
    for k in range(count):
        s = float(np.clip(saturation + rng.uniform(-0.2, 0.2), 0, 1))
        v = float(np.clip(value + rng.uniform(-0.25, 0.2), 0, 1))
        rgb = colorsys.hsv_to_rgb((start + k * turn) % 1, s, v)
        out.append((round(255 * rgb[0]), round(255 * rgb[1]), round(255 * rgb[2])))
    return out


def luminance(colour: Colour) -> float:
    """Rec. 601 luma of a colour, 0 to 255."""
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]


def paper_and_ink(rng: Rng) -> tuple[Colour, Colour]:
    """The colours of a page and of its text, with at least 120 levels of luma between them."""
    k = rng.random()
    if k < 0.35:
        return WHITE, BLACK
    if k < 0.6:
        return grey(whole(rng, 240, 255)), grey(whole(rng, 0, 89))
    if k < 0.75:
        return grey(whole(rng, 0, 49)), grey(whole(rng, 190, 255))
    while True:
        paper, ink = any_colour(rng), any_colour(rng)
        if abs(luminance(paper) - luminance(ink)) > 120:
            return paper, ink


def mixed(a: Colour, b: Colour, share: float) -> Colour:
    """The colour between `a` (share 0) and `b` (share 1)."""
    r, g, b_ = (round(p + (q - p) * share) for p, q in zip(a, b, strict=True))
    return r, g, b_


def ramp(rng: Rng, size: int) -> Floats:
    """A linear or radial gradient, [size, size] from 0 to 1."""
    at = np.arange(size, dtype=np.float32) / size
    y, x = at[:, None], at[None, :]
    if chance(rng, 0.35):
        t = np.hypot(x - rng.uniform(-0.2, 1.2), y - rng.uniform(-0.2, 1.2)) * rng.uniform(0.7, 2)
    else:
        angle = pick(rng, (0.0, np.pi / 2, rng.uniform(0, 2 * np.pi)))
        t = x * math.cos(angle) + y * math.sin(angle)
        t = (t - t.min()) / (t.max() - t.min()) * pick(rng, (1.0, 1.0, 1.5, 0.5))
    clipped: Floats = np.clip(t, 0, 1)
    return clipped


def clouds(rng: Rng, size: int) -> Floats:
    """Blurred noise, [size, size] from 0 to 1."""
    coarse = rng.integers(0, 256, (whole(rng, 3, 24),) * 2, np.uint8)
    fine = Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(fine, np.float32) / 255


def graded(t: Floats, a: Colour, b: Colour) -> Floats:
    """The colours from `a` to `b` at every place of a gradient: [H, W, 3], 0 to 255."""
    first, last = np.array(a, np.float32), np.array(b, np.float32)
    rgb: Floats = t[..., None] * (last - first)
    rgb += first
    return rgb


def as_picture(rgb: Floats) -> Drawing:
    """An array [H, W, 3] of 0 to 255 as a picture, rounded."""
    return Image.fromarray(np.clip(rgb + 0.5, 0, 255).astype(np.uint8))


def ground(rng: Rng, size: int) -> Drawing:
    """A background for shapes: a plain colour or a gradient."""
    if chance(rng, 0.7):
        return Image.new("RGB", (size, size), any_colour(rng))
    return as_picture(graded(ramp(rng, size), any_colour(rng), any_colour(rng)))


def shadow(picture: Drawing, box: Rect, radius: float, blur: float, strength: float) -> None:
    """Darken a picture in place as a blurred black box would."""
    margin = int(3 * blur)
    x0, y0, x1, y1 = (round(v) for v in box)
    mask = Image.new("L", (x1 - x0 + 2 * margin, y1 - y0 + 2 * margin))
    inner = (margin, margin, x1 - x0 + margin, y1 - y0 + margin)
    ImageDraw.Draw(mask).rounded_rectangle(inner, radius, fill=round(255 * strength))
    picture.paste(BLACK, (x0 - margin, y0 - margin), mask.filter(ImageFilter.GaussianBlur(blur)))


def spline(points: NDArray[np.floating], closed: bool, steps: int = 12) -> list[Point]:
    """A Catmull-Rom curve through points [n, 2]."""
    p = np.asarray(points, float)
    p = np.concatenate([p[-1:], p, p[:2]] if closed else [p[:1], p, p[-1:]])
    t = np.linspace(0, 1, steps, endpoint=False)[:, None]
    a, b, c, d = (p[k : len(p) - 3 + k, None] for k in range(4))
    curve = b + t * (c - a) / 2 + t**2 * (a - 2.5 * b + 2 * c - d / 2)
    curve = curve + t**3 * (1.5 * (b - c) + (d - a) / 2)
    flat = np.concatenate([curve.reshape(-1, 2), p[-2:-1]])
    return [(float(x), float(y)) for x, y in flat]


def blob(rng: Rng, x: float, y: float, radius: float) -> list[Point]:
    """A closed smooth curve around a point."""
    n = whole(rng, 4, 9)
    angles = np.arange(n) * 2 * np.pi / n + rng.uniform(0, 6.28)
    radii = radius * rng.uniform(0.55, 1.1, n)
    stretch = rng.uniform(0.6, 1.4)
    around = np.stack([x + radii * np.cos(angles) * stretch, y + radii * np.sin(angles)], 1)
    return spline(around, closed=True)


class Canvas:
    """A picture that is drawn larger by a whole factor and then reduced, which smooths edges.

    All coordinates and widths are in pixels of the reduced picture.
    """

    def __init__(self, base: Drawing, scale: int) -> None:
        """Draw over `base`, `scale` times larger; 1 leaves edges jagged."""
        self.scale = scale
        larger = (base.width * scale, base.height * scale)
        self._picture = base.resize(larger, Image.Resampling.NEAREST) if scale > 1 else base.copy()
        self._draw = ImageDraw.Draw(self._picture)

    def box(
        self, box: Rect, fill: Colour | None, edge: Colour | None = None, width: float = 1,
        radius: float = 0,
    ) -> None:  # fmt: skip
        """Draw a rectangle, its corners rounded by `radius`."""
        self._draw.rounded_rectangle(
            self._order(box), radius * self.scale, fill, edge, self._width(width)
        )

    def ellipse(
        self, box: Rect, fill: Colour | None, edge: Colour | None = None, width: float = 1
    ) -> None:
        """Draw the ellipse within a box."""
        self._draw.ellipse(self._order(box), fill, edge, self._width(width))

    def pie(self, box: Rect, start: float, end: float, fill: Colour, edge: Colour | None) -> None:
        """Draw a slice of the ellipse within a box; angles are in degrees."""
        self._draw.pieslice(self._order(box), start, end, fill, edge, self._width(1))

    def arc(self, box: Rect, start: float, end: float, fill: Colour, width: float) -> None:
        """Draw a part of the edge of the ellipse within a box; angles are in degrees."""
        self._draw.arc(self._order(box), start, end, fill, self._width(width))

    def polygon(
        self, points: Sequence[Point], fill: Colour | None, edge: Colour | None = None,
        width: float = 1,
    ) -> None:  # fmt: skip
        """Draw a closed polygon."""
        scaled = [(x * self.scale, y * self.scale) for x, y in points]
        if fill is not None:
            self._draw.polygon(scaled, fill)
        if edge is not None:
            self._draw.line([*scaled, *scaled[:2]], edge, self._width(width), "curve")

    def line(self, points: Sequence[Point], fill: Colour, width: float = 1) -> None:
        """Draw a line through points."""
        scaled = [(x * self.scale, y * self.scale) for x, y in points]
        self._draw.line(scaled, fill, self._width(width), "curve" if len(points) > 2 else None)

    def finish(self) -> Drawing:
        """Return the reduced picture."""
        return self._picture.reduce(self.scale) if self.scale > 1 else self._picture

    def _width(self, width: float) -> int:
        return max(1, round(width * self.scale))

    def _order(self, box: Rect) -> Rect:
        x0, x1 = sorted((box[0], box[2]))
        y0, y1 = sorted((box[1], box[3]))
        last = 1 - 1 / self.scale  # Pillow's boxes include their last pixel.
        return x0 * self.scale, y0 * self.scale, (x1 + last) * self.scale, (y1 + last) * self.scale
