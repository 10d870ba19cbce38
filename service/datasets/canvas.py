"""Smooth shapes of procedural pictures.

Pillow draws shapes without anti-aliasing, so `Canvas` draws them larger and reduces them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from service.datasets.colours import BLACK, Colour, Rng
from service.datasets.gradients import Drawing, Floats

Point = tuple[float, float]
Rect = tuple[float, float, float, float]
Points = Floats | Sequence[Point]
"""Points of a line, [n, 2]."""


def shadow(picture: Drawing, box: Rect, radius: float, blur: float, strength: float) -> None:
    """Darken a picture in place as a blurred black box would."""
    margin = int(3 * blur)
    x0, y0, x1, y1 = (round(v) for v in box)
    mask = Image.new("L", (x1 - x0 + 2 * margin, y1 - y0 + 2 * margin))
    inner = (margin, margin, x1 - x0 + margin, y1 - y0 + margin)
    ImageDraw.Draw(mask).rounded_rectangle(inner, radius, fill=round(255 * strength))
    picture.paste(BLACK, (x0 - margin, y0 - margin), mask.filter(ImageFilter.GaussianBlur(blur)))


def spline(points: Floats, closed: bool, steps: int = 12) -> Floats:
    """A Catmull-Rom curve through points [n, 2]: [m, 2]."""
    p = np.asarray(points, float)
    p = np.concatenate([p[-1:], p, p[:2]] if closed else [p[:1], p, p[-1:]])
    t = np.linspace(0, 1, steps, endpoint=False)[:, None]
    a, b, c, d = (p[k : len(p) - 3 + k, None] for k in range(4))
    curve = b + t * (c - a) / 2 + t**2 * (a - 2.5 * b + 2 * c - d / 2)
    curve = curve + t**3 * (1.5 * (b - c) + (d - a) / 2)
    return np.concatenate([curve.reshape(-1, 2), p[-2:-1]])


def around(x: float, y: float, radius: float) -> Rect:
    """The square around a circle."""
    return x - radius, y - radius, x + radius, y + radius


def blob(rng: Rng, x: float, y: float, radius: float) -> Floats:
    """A closed smooth curve around a point."""
    n = rng.whole(4, 9)
    angles = np.arange(n) * 2 * np.pi / n + rng.uniform(0, 6.28)
    radii = radius * rng.uniform(0.55, 1.1, n)
    stretch = rng.uniform(0.6, 1.4)
    points = np.stack([x + radii * np.cos(angles) * stretch, y + radii * np.sin(angles)], 1)
    return spline(points, closed=True)


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
        self, points: Points, fill: Colour | None, edge: Colour | None = None,
        width: float = 1,
    ) -> None:  # fmt: skip
        """Draw a closed polygon."""
        scaled = [(x * self.scale, y * self.scale) for x, y in points]
        if fill is not None:
            self._draw.polygon(scaled, fill)
        if edge is not None:
            self._draw.line([*scaled, *scaled[:2]], edge, self._width(width), "curve")

    def line(self, points: Points, fill: Colour, width: float = 1) -> None:
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
