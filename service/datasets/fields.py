"""Procedural pictures of colour fields and small squares: plain, graded, patterned, dithered."""

from __future__ import annotations

from itertools import pairwise, product
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.datasets.colours import BLACK, WHITE, Colour, Rng, grey, luminance
from service.datasets.gradients import Drawing, Floats, as_picture, clouds, graded, ramp
from service.picture import U8


def plain_cells(rng: Rng, size: int) -> Drawing:
    """Two or four large cells of different plain colours.

    Most crops of the pictures are plain or have one edge, and all have other colours.
    """
    picture = Image.new("RGB", (size, size))
    xs = [0, rng.whole(size * 0.2, size * 0.8), size]
    ys = [0, rng.whole(size * 0.2, size * 0.8), size]
    k = rng.random()
    if k < 0.2:
        xs = [0, size]
    elif k < 0.4:
        ys = [0, size]
    used: set[Colour] = set()
    for (x0, x1), (y0, y1) in product(pairwise(xs), pairwise(ys)):
        while (colour := rng.any_colour()) in used:
            continue
        used.add(colour)
        picture.paste(colour, (x0, y0, x1, y1))
    return picture


def gradient(rng: Rng, size: int) -> Drawing:
    """A gradient between two or three colours: rounded, dithered or in visible bands."""
    t, (a, b, c) = ramp(rng, size), (rng.any_colour() for _ in range(3))
    k = rng.random()
    if k < 0.15:
        bands = rng.whole(5, 40)
        t = np.round(t * bands) / bands
    rgb: Floats
    if rng.chance(0.3):
        rgb = graded(np.minimum(2 * t, 1), a, b) + graded(np.maximum(2 * t - 1, 0), BLACK, c)
        rgb -= graded(np.maximum(2 * t - 1, 0), BLACK, b)
    elif rng.chance(0.15):
        rgb = graded(ramp(rng, size), a, c) / 2 + graded(t, a, b) / 2
    else:
        rgb = graded(t, a, b)
    if k > 0.6:
        channels = rng.pick((1, 3))
        rgb = rgb + (rng.random((size, size, channels), np.float32) - 0.5) * rng.pick((1, 2, 5))
    return as_picture(rgb)


def patterns(rng: Rng, size: int) -> Drawing:
    """One to four fields, each of a pattern of squares, stripes or dots of 1 to 16 pixels."""
    out = np.empty((size, size, 3), np.uint8)
    rows, columns = rng.whole(1, 2), rng.whole(1, 2)
    ys = np.linspace(0, size, rows + 1).astype(int)
    xs = np.linspace(0, size, columns + 1).astype(int)
    for (y0, y1), (x0, x1) in product(pairwise(ys), pairwise(xs)):
        a, b = _two_colours(rng)
        out[y0:y1, x0:x1] = np.where(_pattern(rng, y1 - y0, x1 - x0)[..., None], a, b)
    return Image.fromarray(out)


def _two_colours(rng: Rng) -> tuple[Colour, Colour]:
    if rng.chance(0.5):
        return BLACK, WHITE
    a, b = rng.any_colour(), rng.any_colour()
    return a, b if a != b else grey(255 - a[0] // 2)


def _pattern(rng: Rng, height: int, width: int) -> NDArray[np.bool_]:
    y, x = np.mgrid[0:height, 0:width]
    cell, kind = rng.pick((1, 1, 2, 2, 3, 4, 5, 6, 8, 12, 16)), rng.whole(0, 7)
    u, v = y // cell, x // cell
    if kind == 0:
        return np.asarray((u + v) % 2 == 0)
    if kind == 1:
        return np.asarray((u if rng.chance(0.5) else v) % rng.whole(2, 4) == 0)
    if kind == 2:
        return np.asarray((x + y * rng.pick((1, -1, 2))) // cell % rng.whole(2, 3) == 0)
    if kind in (3, 4):
        return _modules(rng, height, width, max(cell, 2))
    if kind == 5:
        pitch = cell * rng.whole(3, 6)
        return np.asarray((x % pitch < cell) | (y % pitch < cell))
    if kind == 6:
        pitch = 2 * cell + rng.whole(1, 8)
        return np.asarray((x % pitch - cell) ** 2 + (y % pitch - cell) ** 2 < cell**2)
    bars = np.repeat(rng.random(width) < 0.5, rng.integers(1, 5, width) * max(1, cell // 4))
    return np.broadcast_to(bars[:width], (height, width))


def _modules(rng: Rng, height: int, width: int, cell: int) -> NDArray[np.bool_]:
    """Random squares within a quiet zone, some with the corner marks of QR codes; True is dark."""
    n = min(height, width) // cell - 8
    dark = np.zeros((height // cell + 1, width // cell + 1), bool)
    if n < 16 or rng.chance(0.3):
        dark = rng.random(dark.shape) < rng.uniform(0.2, 0.6)
    else:
        dark[4 : 4 + n, 4 : 4 + n] = rng.random((n, n)) < 0.5
        mark = np.zeros((8, 8), bool)
        mark[:7, :7], mark[1:6, 1:6], mark[2:5, 2:5] = True, False, True
        dark[4:12, 4:12], dark[4:12, n - 4 : n + 4] = mark, mark[:, ::-1]
        dark[n - 4 : n + 4, 4:12] = mark[::-1]
    return dark.repeat(cell, 0).repeat(cell, 1)[:height, :width]


def pixel_art(rng: Rng, size: int) -> Drawing:
    """A map of small square tiles with sprites on it, enlarged without smoothing."""
    zoom, side = rng.pick((2, 2, 3, 4, 4, 5, 6, 8)), rng.pick((8, 12, 16, 16))
    cells = size // (zoom * side) + 1
    inks = [grey(rng.whole(0, 49)), *rng.palette(rng.whole(3, 7))]
    kinds = [_map_tile(rng, side, inks) for _ in range(rng.whole(1, 4))]
    level = np.minimum(clouds(rng, cells) * len(kinds), len(kinds) - 1).astype(int)
    out = np.zeros((cells * side, cells * side, 3), np.uint8)
    plain = rng.chance(0.3)
    out[:] = inks[-1]
    sprites = [_sprite(rng, side, inks) for _ in range(rng.whole(1, 5))]
    crowded = rng.uniform(0.05, 0.6)
    for row in range(cells):
        for column in range(cells):
            place = out[row * side : (row + 1) * side, column * side : (column + 1) * side]
            if not plain:
                place[:] = kinds[level[row, column]]
            if rng.chance(crowded):
                solid, sprite = rng.pick(sprites)
                place[solid] = sprite[solid]
    out = out.repeat(zoom, 0).repeat(zoom, 1)
    return Image.fromarray(out[:size, :size])


def _map_tile(rng: Rng, side: int, inks: list[Colour]) -> U8:
    """One square tile of ground: specks, bricks, a frame or checks."""
    a, b = np.array(rng.pick(inks[1:]), np.uint8), np.array(rng.pick(inks), np.uint8)
    y, x = np.mgrid[0:side, 0:side]
    kind = rng.whole(0, 4)
    if kind == 0:
        where = rng.random((side, side)) < rng.uniform(0, 0.25)
    elif kind == 1:
        where = (y % 4 == 3) | ((x + (y // 4 % 2) * side // 4) % (side // 2) == 0)
    elif kind == 2:
        inner = (x > 1) & (y > 1) & (x < side - 2) & (y < side - 2)
        where = (x == 0) | (y == 0) | (inner & ((x == 2) | (y == 2)))
    elif kind == 3:
        where = (x // 2 + y // 2) % 2 == 0
    else:
        where = (y + (x // 2) % 2 * 2) % 5 == 0
    return np.where(where[..., None], a // 4 * 3 if rng.chance(0.5) else b, a).astype(np.uint8)


def _sprite(rng: Rng, side: int, inks: list[Colour]) -> tuple[NDArray[np.bool_], U8]:
    """A mirrored figure with an outline: its mask and its colours."""
    half = side // 2 - 1
    y, x = np.mgrid[0 : side - 2, 0:half]
    near = np.hypot((y - side / 2 + 1) / side * 2, (x - half) / half) + rng.normal(0, 0.25, x.shape)
    body = np.where(near < 0.8, rng.integers(1, min(4, len(inks)), x.shape), 0)
    body = np.repeat(body[:, ::2], 2, 1)[:, :half] if rng.chance(0.3) else body
    full = np.zeros((side, side), int)
    full[1:-1, 1 : 1 + half], full[1:-1, side - 1 - half : side - 1] = body, body[:, ::-1]
    filled = full > 0
    edge = filled.copy()
    edge[1:] |= filled[:-1]
    edge[:-1] |= filled[1:]
    edge[:, 1:] |= filled[:, :-1]
    edge[:, :-1] |= filled[:, 1:]
    return edge, np.array(inks, np.uint8)[full]


BAYER: Final[Floats] = (
    np.array([[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]], np.float32) + 0.5
) / 16
"""Thresholds of ordered dither."""


def dithered(rng: Rng, size: int) -> Drawing:
    """Gradients and clouds, dithered to two colours or to the palette of old web pages."""
    zoom = rng.pick((1, 1, 1, 2))
    side = -(-size // zoom)
    t = clouds(rng, side) if rng.chance(0.5) else ramp(rng, side)
    kind = rng.random()
    if kind < 0.25:
        rgb = as_picture(graded(t, rng.any_colour(), rng.any_colour()))
        small = rgb.convert("P", palette=Image.Palette.WEB).convert("RGB")
    else:
        if kind < 0.65:
            where = np.asarray(Image.fromarray((t * 255).astype(np.uint8)).convert("1"))
        else:
            where = t > np.tile(BAYER, (-(-side // 4),) * 2)[:side, :side]
        a, b = sorted(_two_colours(rng), key=luminance)
        small = Image.fromarray(np.where(where[..., None], b, a).astype(np.uint8))
    larger = small.resize((side * zoom,) * 2, Image.Resampling.NEAREST)
    return larger.crop((0, 0, size, size))
