"""Procedural drawings: flat shapes, scenery, lines, comics, products on white."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from service.datasets.canvas import Canvas, Rect, around, blob, spline
from service.datasets.colours import BLACK, WHITE, Colour, Rng, grey, luminance, mixed
from service.datasets.gradients import Drawing, Floats, as_picture, graded, ground, ramp
from service.datasets.text import Face, label, some_face, words, write


def shapes(rng: Rng, size: int) -> Drawing:
    """Boxes, ellipses, lines, stars and rings of a few colours, with smooth or jagged edges."""
    canvas = Canvas(ground(rng, size), rng.pick((1, 2, 2, 3)))
    inks = [*rng.palette(rng.whole(2, 6)), rng.any_colour()]
    largest = size * rng.pick((0.1, 0.25, 0.6))
    if rng.chance(0.25):
        _repeated(rng, canvas, size, inks)
    for _ in range(rng.whole(5, 3 * size / largest + 8)):
        x, y = rng.uniform(-0.1 * size, size, 2)
        w, h = rng.uniform(largest / 8, largest, 2)
        if rng.chance(0.4):
            x, y, w, h = (round(v / 8) * 8 for v in (x, y, w, h))
        edge = rng.pick(inks) if rng.chance(0.3) else None
        _shape(rng, canvas, rng.whole(0, 8), (x, y, x + w, y + h), rng.pick(inks), edge)
    picture = canvas.finish()
    if rng.chance(0.3):
        face = some_face(rng, 14, 64)
        at = (rng.uniform(0, size / 2), rng.uniform(0, size - face.pitch))
        write(picture, at, label(rng, 1, 4), face, rng.pick(inks))
    return picture


def _repeated(rng: Rng, canvas: Canvas, size: int, inks: list[Colour]) -> None:
    """Draw shapes of one kind on a grid."""
    pitch, kind = rng.whole(12, 100), rng.pick((0, 2, 3, 4, 6, 7))
    filling = rng.uniform(0.4, 0.9) * pitch
    for x in range(0, size, pitch):
        for y in range(0, size, pitch):
            _shape(rng, canvas, kind, (x, y, x + filling, y + filling), rng.pick(inks), None)


def _shape(
    rng: Rng, canvas: Canvas, kind: int, box: Rect, fill: Colour, edge: Colour | None
) -> None:
    x0, y0, x1, y1 = box
    width = rng.pick((1, 1, 2, 3, 6, 12))
    if kind in (0, 1):
        radius = rng.pick((0, 0, 0, 4, 12)) if min(x1 - x0, y1 - y0) > 24 else 0
        canvas.box(box, fill, edge, min(width, 6), radius)
    elif kind == 2:
        canvas.ellipse(box, fill, edge, min(width, 6))
    elif kind == 3:
        canvas.ellipse((x0, y0, x1, y0 + x1 - x0), None, fill, width)
    elif kind == 4:
        canvas.line([(x0, y0), (x1, y0 if rng.chance(0.4) else y1)], fill, width)
    elif kind == 5:
        points = rng.uniform((x0, y0), (x1 + 1, y1 + 1), (rng.whole(3, 6), 2))
        canvas.polygon(points, fill, edge, min(width, 3))
    elif kind == 6:
        canvas.polygon(star(rng, (x0 + x1) / 2, (y0 + y1) / 2, (x1 - x0) / 2), fill, edge)
    elif kind == 7:
        steps = [(x0, y0), (x0, y1), (x1, y1), (x1, y1 + (y1 - y0) / 2)]
        canvas.line(steps[: rng.whole(2, 4)], fill, min(width, 4))
        canvas.ellipse((x0 - 4, y0 - 4, x0 + 4, y0 + 4), fill)
    else:
        canvas.polygon(blob(rng, (x0 + x1) / 2, (y0 + y1) / 2, (x1 - x0) / 2), fill, edge, width)


def star(rng: Rng, x: float, y: float, radius: float) -> Floats:
    """A regular polygon or a star around a point."""
    n, inner = rng.whole(3, 9), rng.pick((1.0, 0.4, 0.6))
    n = n if inner == 1 else 2 * n
    angles = np.arange(n) * 2 * np.pi / n + rng.uniform(0, 6.28)
    radii = np.where(np.arange(n) % 2, inner, 1) * radius
    return np.stack([x + radii * np.cos(angles), y + radii * np.sin(angles)], 1)


def scenery(rng: Rng, size: int) -> Drawing:
    """A sky with a sun and layers of hills, as flat illustrations show them."""
    sky, far = rng.hue(rng.uniform(0.1, 0.7), 0.95), rng.hue(rng.uniform(0.2, 0.8), 0.8)
    near = rng.hue(rng.uniform(0.3, 0.9), rng.uniform(0.1, 0.4))
    down = np.linspace(0, 1, size, dtype=np.float32)[:, None].repeat(size, 1)
    canvas = Canvas(as_picture(graded(down, sky, far)), 2)
    x, y, radius = rng.uniform(0, size), rng.uniform(0, size / 2), rng.uniform(0.03, 0.15) * size
    sun = mixed(sky, WHITE, 0.7) if rng.chance(0.6) else rng.hue(0.8, 1)
    canvas.ellipse(around(x, y, radius), sun)
    layers = rng.whole(2, 6)
    sharp = rng.chance(0.4)
    for k in range(layers):
        level = size * (0.4 + 0.55 * k / layers)
        n = rng.whole(4, 9)
        heights = level + rng.normal(0, size * 0.05, n)
        ridge = np.stack([np.linspace(-20, size + 20, n), heights], 1)
        edge = ridge if sharp else spline(ridge, closed=False)
        fill = mixed(far, near, (k + 1) / layers)
        canvas.polygon([*edge, (size + 20, size + 20), (-20, size + 20)], fill)
        for _ in range(rng.whole(0, 5) if k + 1 == layers else 0):
            u, h = rng.uniform(0, size), size * rng.uniform(0.05, 0.2)
            tree = [(u - h / 4, level), (u, level - h), (u + h / 4, level)]
            canvas.polygon(tree, mixed(near, BLACK, 0.4))
    return canvas.finish()


def line_drawing(rng: Rng, size: int) -> Drawing:
    """Curves, tapered strokes and hatching in ink on paper, some areas filled."""
    paper, ink = (WHITE, grey(rng.whole(0, 39))) if rng.chance(0.85) else (grey(20), WHITE)
    canvas = Canvas(Image.new("RGB", (size, size), paper), rng.pick((1, 2, 2, 3)))
    width = rng.uniform(1, 5)
    fills = [paper, paper, grey(rng.whole(120, 239)), ink] + rng.palette(2)
    coloured = rng.chance(0.2)
    for _ in range(rng.whole(1, 7)):
        x, y = rng.uniform(0, size, 2)
        radius = size * rng.uniform(0.04, 0.35)
        shape = blob(rng, x, y, radius)
        canvas.polygon(shape, rng.pick(fills[: 6 if coloured else 4]), ink, width)
        if rng.chance(0.4):
            _hatch(rng, canvas, (x, y, radius * 0.6), ink)
        if rng.chance(0.4):
            r = radius * rng.uniform(0.1, 0.4)
            canvas.ellipse(around(x, y, r), paper, ink, width)
            canvas.ellipse(around(x, y, r / 2), ink)
    for _ in range(rng.whole(2, 30)):
        canvas.polygon(_stroke(rng, size, width * rng.uniform(0.5, 2)), ink)
    for _ in range(rng.whole(0, 5)):
        points = rng.uniform(0, size) + np.cumsum(rng.normal(0, size / 8, (rng.whole(3, 7), 2)), 0)
        canvas.line(spline(points, closed=False), ink, width)
    return canvas.finish()


def _stroke(rng: Rng, size: int, width: float) -> Floats:
    """A curved stroke of a pen that is thickest in its middle."""
    start, way = rng.uniform(0, size, 2), rng.normal(0, size / 6, 2)
    bend = rng.normal(0, size / 20, 2)
    middle = np.array([start, start + way / 2 + bend, start + way])
    line = spline(middle, closed=False)
    along = np.gradient(line, axis=0)
    across = np.stack([-along[:, 1], along[:, 0]], 1) / (np.hypot(*along.T)[:, None] + 1e-6)
    across *= np.sin(np.linspace(0, np.pi, len(line)))[:, None] * width / 2 + 0.2
    return np.concatenate([line + across, (line - across)[::-1]])


def _hatch(rng: Rng, canvas: Canvas, disc: tuple[float, float, float], ink: Colour) -> None:
    """Fill a disc, given by its centre and radius, with parallel lines."""
    x, y, radius = disc
    angle, gap = rng.uniform(0, np.pi), rng.uniform(3, 9)
    along = np.array([np.cos(angle), np.sin(angle)])
    across = np.array([-along[1], along[0]])
    for k in np.arange(-radius, radius, gap):
        half = np.sqrt(radius**2 - k**2) * rng.uniform(0.8, 1)
        a, b = (np.array([x, y]) + k * across + end * along for end in (-half, half))
        canvas.line(np.stack([a, b]), ink, 1)


def halftone(rng: Rng, t: Floats, pitch: float) -> Floats:
    """Dots on a rotated grid that cover a share `t` [S, S] of each place: [S, S], 0 to 1."""
    at = np.arange(t.shape[0], dtype=np.float32) / pitch
    y, x = at[:, None], at[None, :]
    angle = rng.pick((0.0, 0.262, 0.785, 1.309))
    u = x * math.cos(angle) + y * math.sin(angle)
    v = y * math.cos(angle) - x * math.sin(angle)
    distance = np.hypot(u - np.round(u), v - np.round(v))
    ink: Floats = np.clip((np.sqrt(t / np.pi) - distance) * pitch + 0.5, 0, 1)
    return np.where(t > 0, ink, 0)


def comic(rng: Rng, size: int) -> Drawing:
    """Panels of flat colours with thick outlines, halftone dots and speech bubbles."""
    a, b = rng.palette(2)
    if rng.chance(0.3):
        a, b = WHITE, grey(rng.whole(0, 119))
    if rng.chance(0.6):
        dots = halftone(rng, ramp(rng, size) * rng.uniform(0.3, 0.9), rng.uniform(4, 14))
        back = as_picture(graded(dots, mixed(a, WHITE, 0.5), b))
    else:
        back = Image.new("RGB", (size, size), a)
    ink = grey(rng.whole(0, 39))
    canvas, width = Canvas(back, 2), rng.uniform(2, 7)
    inks = [WHITE, *rng.palette(rng.whole(3, 6))]
    for _ in range(rng.whole(2, 7)):
        x, y = rng.uniform(0, size, 2)
        radius = size * rng.uniform(0.06, 0.3)
        fill = rng.pick(inks)
        outline = blob(rng, x, y, radius) if rng.chance(0.75) else star(rng, x, y, radius)
        canvas.polygon(outline, fill, ink, width)
        if rng.chance(0.5):
            shade = blob(rng, x + radius * 0.2, y + radius * 0.2, radius * 0.5)
            canvas.polygon(shade, mixed(fill, BLACK, 0.25))
    for _ in range(rng.whole(0, 12)):
        canvas.polygon(_stroke(rng, size, width * 1.5), ink)
    if rng.chance(0.5):
        cut = size * rng.uniform(0.3, 0.7)
        gutter = rng.pick(((cut, -9, cut + 10, size + 9), (-9, cut, size + 9, cut + 10)))
        canvas.box(gutter, WHITE, ink, 3)
    picture = canvas.finish()
    for _ in range(rng.whole(0, 2)):
        _bubble(rng, picture, ink)
    return picture


def _bubble(rng: Rng, picture: Drawing, ink: Colour) -> None:
    """Draw a speech bubble with a few capitals into a picture in place."""
    face = Face(rng.whole(11, 20), zoom=0).bolder()
    rows = [" ".join(words(rng, rng.whole(1, 3))).upper() for _ in range(rng.whole(1, 4))]
    w = max(face.length(row) for row in rows) + 3 * face.size
    h = (len(rows) + 2) * face.pitch
    x, y = rng.uniform(0, max(1, picture.width - w)), rng.uniform(0, max(1, picture.height - h))
    canvas = Canvas(picture, 2)
    tail = [(x + w * 0.4, y + h * 0.9), (x + w * 0.3, y + h * 1.25), (x + w * 0.55, y + h * 0.9)]
    canvas.polygon(tail, WHITE, ink, 2)
    canvas.ellipse((x, y, x + w, y + h), WHITE, ink, 2)
    canvas.polygon(tail, WHITE)
    picture.paste(canvas.finish())
    for k, row in enumerate(rows):
        at = (x + (w - face.length(row)) / 2, y + (k + 1) * face.pitch)
        write(picture, at, row, face, ink)


def product(rng: Rng, size: int) -> Drawing:
    """A logo, or a shaded object with a soft shadow, in the middle of a pure white ground."""
    return _logo(rng, size) if rng.chance(0.45) else _thing(rng, size)


def _logo(rng: Rng, size: int) -> Drawing:
    paper = WHITE if rng.chance(0.8) else rng.any_colour()
    canvas = Canvas(Image.new("RGB", (size, size), paper), 3)
    inks = rng.palette(rng.whole(1, 3))
    x, y, radius = size / 2, size * rng.uniform(0.35, 0.5), size * rng.uniform(0.08, 0.25)
    for k in range(rng.whole(1, 3)):
        r, ink = radius * (1 - 0.3 * k), inks[k % len(inks)] if k != 1 else paper
        kind = rng.whole(0, 3)
        if kind == 0:
            canvas.ellipse(around(x, y, r), ink)
        elif kind == 1:
            canvas.box(around(x, y, r), ink, radius=rng.pick((0.0, r / 4)))
        elif kind == 2:
            canvas.polygon(star(rng, x, y, r), ink)
        else:
            start = rng.uniform(0, 360)
            end = start + rng.uniform(90, 300)
            canvas.arc(around(x, y, r), start, end, ink, r / 3)
    picture = canvas.finish()
    if rng.chance(0.8):
        face = Face(rng.whole(size / 20, size / 8)).bolder()
        text, ink = label(rng, 1, 1), grey(40) if luminance(paper) > 100 else WHITE
        at = ((size - face.length(text)) / 2, y + radius * 1.3)
        write(picture, at, text, face, ink if rng.chance(0.5) else inks[0])
    return picture


def _thing(rng: Rng, size: int) -> Drawing:
    """A ball, a vase or a bottle turned on a lathe, lit from the upper left."""
    body, half_height = rng.hue(rng.uniform(0, 0.9), rng.uniform(0.3, 1)), rng.uniform(0.2, 0.4)
    at = np.arange(size, dtype=np.float32) / size - 0.5
    v = at[:, None] / half_height
    if rng.chance(0.4):
        width = half_height * np.sqrt(np.clip(1 - v**2, 0, 1))
        right, down = at[None, :] / half_height, v
    else:
        knots = half_height * rng.uniform(0.15, 0.8, 5)
        width = np.interp(v, *_smooth_profile(knots)).astype(np.float32)
        right, down = at[None, :] / np.maximum(width, 1e-4), v * 0.2
    depth = np.sqrt(np.clip(1 - right**2 - down**2, 0, 1))
    lit = np.clip(0.75 * depth - 0.45 * right - 0.35 * down, 0, 1)[..., None]
    shine = np.clip(0.8 * depth - 0.5 * right - 0.4 * down, 0, 1) ** rng.pick((12, 30, 60))
    rgb = np.array(body, np.float32) * (0.25 + 0.75 * lit)
    if rng.chance(0.3):
        labelled = (np.abs(v - rng.uniform(-0.3, 0.5)) < 0.2)[..., None]
        rgb = np.where(labelled, rgb * 0.3 + 180 * lit, rgb)
    rgb += shine[..., None] * (255 - rgb) * rng.uniform(0.2, 0.9)
    inside = np.clip((width - np.abs(at[None, :])) * size, 0, 1) * (np.abs(v) < 1)
    floor = _floor(rng, size, half_height)
    return as_picture(floor + (rgb - floor) * inside[..., None])


def _floor(rng: Rng, size: int, half_height: float) -> Floats:
    """White with a soft shadow below the middle, [S, S, 1], 0 to 255."""
    back = Image.new("L", (size, size), 255)
    foot, wide, high = size * (0.5 + half_height), size * half_height * 0.8, size * 0.03
    flat = (size / 2 - wide, foot - high, size / 2 + wide, foot + high)
    ImageDraw.Draw(back).ellipse(flat, rng.whole(60, 190))
    return np.asarray(back.filter(ImageFilter.GaussianBlur(size * 0.02)), np.float32)[..., None]


def _smooth_profile(knots: Floats) -> tuple[Floats, Floats]:
    """Heights and half-widths of a curve through half-widths at even heights from -1 to 1."""
    heights = np.linspace(-1, 1, len(knots))
    curve = spline(np.stack([heights, knots], 1), closed=False)
    return curve[:, 0], curve[:, 1]
