"""Procedural pictures of text and charts: pages, code listings and plots."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from PIL import Image, ImageDraw

from service.datasets.canvas import Canvas, Rect, around
from service.datasets.colours import BLACK, WHITE, Colour, Rng, grey, luminance, mixed
from service.datasets.gradients import Drawing
from service.datasets.text import Face, label, lines_of, some_face, words, write


def _paper_and_ink(rng: Rng) -> tuple[Colour, Colour]:
    """The colours of a page and of its text, with at least 120 levels of luma between them."""
    k = rng.random()
    if k < 0.35:
        return WHITE, BLACK
    if k < 0.6:
        return grey(rng.whole(240, 255)), grey(rng.whole(0, 89))
    if k < 0.75:
        return grey(rng.whole(0, 49)), grey(rng.whole(190, 255))
    while True:
        paper, ink = rng.any_colour(), rng.any_colour()
        if abs(luminance(paper) - luminance(ink)) > 120:
            return paper, ink


def page(rng: Rng, size: int) -> Drawing:
    """Paragraphs in one to three columns, with headings."""
    paper, ink = _paper_and_ink(rng)
    picture = Image.new("RGB", (size, size), paper)
    face = some_face(rng, 8, 64)
    columns = 1 if face.size > 16 else rng.whole(1, 3)
    gap = rng.whole(12, 30)
    width = (size - gap) / columns - gap
    heading = ink if rng.chance(0.6) else mixed(ink, rng.hue(0.8, luminance(ink) / 255), 0.7)
    for k in range(columns):
        left = gap + k * (width + gap)
        y = float(rng.uniform(-face.pitch, 2 * gap))
        while y < size:
            y = _paragraph(rng, picture, (left, y, left + width, size), face, ink, heading)
    return picture


def _paragraph(
    rng: Rng, picture: Drawing, box: Rect, face: Face, ink: Colour, heading: Colour
) -> float:
    """Write a paragraph, perhaps with a heading; return the top of the next one."""
    x0, y, x1, _ = box
    if rng.chance(0.3):
        big = Face(round(face.size * rng.uniform(1, 2)), zoom=face.zoom).bolder()
        (line,) = lines_of(rng, big, x1 - x0, 1)
        write(picture, (x0, y), " ".join(line[:5]), big, heading)
        y += big.pitch * 1.3
    pitch = face.size * rng.pick((1.15, 1.3, 1.5))
    bullet = rng.chance(0.15)
    lines = lines_of(rng, face, x1 - x0 - 2 * face.size, rng.whole(1, 9))
    justified = face.length("m") < 12 and rng.chance(0.3)
    for k, line in enumerate(lines):
        if y > picture.height:
            break
        if justified and k + 1 < len(lines) and len(line) > 1:
            _justify(picture, (x0, y, x1, y), line, face, ink)
        else:
            mark = "- " if bullet and k == 0 else "   " if bullet else ""
            write(picture, (x0, y), mark + " ".join(line), face, ink)
        y += pitch
    return y + rng.pick((0.3, 0.6, 1)) * pitch


def _justify(picture: Drawing, box: Rect, line: list[str], face: Face, ink: Colour) -> None:
    """Write the words of a line from the left to the right edge of a box."""
    lengths = [face.length(word) for word in line]
    gap = (box[2] - box[0] - sum(lengths)) / (len(line) - 1)
    x = box[0]
    for word, length in zip(line, lengths, strict=True):
        write(picture, (x, box[1]), word, face, ink)
        x += length + gap


KEYWORDS: Final = ("if", "for", "return", "def", "class", "import", "else", "while", "let", "fn")
SYMBOLS: Final = ("=", "(", ")", "[", "]", "{", "}", ";", ":", "->", "+", "==", ",", ".", "&&", "*")


def code(rng: Rng, size: int) -> Drawing:
    """Indented lines of a program with coloured words, as an editor or a terminal shows them."""
    dark = rng.chance(0.55)
    paper = grey(rng.whole(0, 45)) if dark else grey(rng.whole(238, 255))
    if dark and rng.chance(0.4):
        paper = rng.hue(0.4, rng.uniform(0.1, 0.22))
    plain = grey(rng.whole(190, 255)) if dark else grey(rng.whole(0, 69))
    inks = [mixed(c, WHITE if dark else BLACK, 0.35) for c in rng.palette(4)]
    face = some_face(rng, 9, 22)
    picture = Image.new("RGB", (size, size), paper)
    gutter = 4 * face.size if rng.chance(0.6) else 8
    y, indent, pitch = float(rng.uniform(-face.size, 8)), 0, face.pitch
    row = rng.whole(1, 900)
    while y < size:
        if gutter > 8:
            write(picture, (8, y), str(row), face, mixed(paper, plain, 0.4))
        if rng.chance(0.04):
            highlight = (0, int(y) - 2, size, int(y) + pitch - 3)
            ImageDraw.Draw(picture).rectangle(highlight, mixed(paper, inks[0], 0.25))
        if rng.chance(0.85):
            left = gutter + indent * face.length("    ")
            _statement(rng, picture, (left, y, size, y), face, [plain, *inks])
        indent = int(np.clip(indent + rng.integers(-1, 2), 0, 5))
        row += 1
        y += pitch
    return picture


def _statement(rng: Rng, picture: Drawing, box: Rect, face: Face, inks: list[Colour]) -> None:
    """Write one line of code; inks are of plain words, keywords, strings, numbers, comments."""
    x, y = box[:2]
    if rng.chance(0.12):
        comment = "# " + " ".join(words(rng, rng.whole(3, 9)))
        write(picture, (x, y), comment, face, inks[4])
        return
    for word in words(rng, rng.whole(1, 7)):
        k = rng.random()
        if k < 0.2:
            text, ink = rng.pick(KEYWORDS), inks[1]
        elif k < 0.32:
            text, ink = f'"{word}"', inks[2]
        elif k < 0.42:
            text, ink = str(rng.whole(0, 999)), inks[3]
        else:
            text, ink = word.lower(), inks[0]
        text += rng.pick(SYMBOLS) if rng.chance(0.5) else ""
        write(picture, (x, y), text, face, ink)
        x += face.length(text + " ")
        if x > box[2]:
            break


@dataclass(frozen=True)
class Plot:
    """A plot: the box of its axes, its typeface, and its colours, one of `inks` for each series."""

    box: Rect
    face: Face
    paper: Colour
    ink: Colour
    inks: list[Colour]


def chart(rng: Rng, size: int) -> Drawing:
    """Bars, lines, points or slices, with axes, grid lines and a legend."""
    dark = rng.chance(0.15)
    paper = grey(rng.whole(10, 49)) if dark else WHITE
    ink = grey(225) if dark else grey(rng.whole(0, 89))
    face = replace(some_face(rng, 9, 16), slant=0)
    picture = Image.new("RGB", (size, size), paper)
    title = label(rng, 2, 5)
    big = Face(round(face.size * rng.uniform(1.2, 1.8))).bolder()
    write(picture, ((size - big.length(title)) / 2, 8), title, big, ink)
    rows = rng.pick((1, 1, 1, 2))
    top, height = big.pitch + 14, (size - big.pitch - 14) / rows
    for k in range(rows):
        box = (5 * face.size, top + k * height, size - 12, top + (k + 1) * height - 3 * face.size)
        draw, scales = rng.pick(PLOTS)
        plot = Plot(box, face, paper, ink, rng.palette(rng.whole(1, 6)))
        if draw is not _slices:
            _axes(rng, picture, plot)
        canvas = Canvas(picture, rng.pick(scales))
        draw(rng, canvas, plot)
        picture = canvas.finish()
        if draw is not _bars or len(plot.inks) > 1:
            _legend(rng, picture, plot, (4, 10) if draw is _slices else (8, 6))
    return picture


def _axes(rng: Rng, picture: Drawing, plot: Plot) -> None:
    """Draw axes, ticks and grid lines with numbers around a plot, on whole pixels."""
    draw, face, ink = ImageDraw.Draw(picture), plot.face, plot.ink
    x0, y0, x1, y1 = (round(v) for v in plot.box)
    faint = mixed(plot.paper, ink, 0.2)
    if rng.chance(0.15):
        draw.rectangle((x0, y0, x1, y1), mixed(faint, WHITE, 0.6))
    steps, unit = rng.whole(3, 7), rng.pick((0.2, 1, 5, 10, 25, 100, 1000))
    gridded, framed = rng.chance(0.65), rng.chance(0.4)
    for k in range(steps + 1):
        y = round(y1 + (y0 - y1) * k / steps)
        if gridded:
            draw.line((x0, y, x1, y), faint)
        draw.line((x0 - 4, y, x0, y), ink)
        text = f"{k * unit:g}"
        write(picture, (x0 - 7 - face.length(text), y - face.size * 0.6), text, face, ink)
    names = rng.chance(0.5)
    for k in range(steps):
        x = round(x0 + (x1 - x0) * (k + 0.5) / steps)
        draw.line((x, y1, x, y1 + 4), ink)
        text = words(rng, 1)[0][:6] if names else str(1 + k)
        write(picture, (x - face.length(text) / 2, y1 + 6), text, face, ink)
    draw.line((x0, y0, x0, y1), ink)
    draw.line((x0, y1, x1, y1), ink)
    if framed:
        draw.rectangle((x0, y0, x1, y1), None, ink)


def _legend(rng: Rng, picture: Drawing, plot: Plot, inset: tuple[int, int]) -> None:
    """Draw the names of the series, perhaps in a frame, `inset` from a corner of the plot."""
    face = plot.face
    names = [label(rng, 1, 2)[:14] for _ in plot.inks]
    x, y = round(plot.box[2] - inset[0]), round(plot.box[1] + inset[1])
    width = round(max(face.length(name) for name in names)) + 2 * face.size + 12
    draw = ImageDraw.Draw(picture)
    if rng.chance(0.6):
        frame = (x - width, y, x, y + len(names) * face.pitch + 8)
        draw.rectangle(frame, plot.paper, mixed(plot.paper, plot.ink, 0.4))
    for k, (name, colour) in enumerate(zip(names, plot.inks, strict=True)):
        top, left = y + 5 + k * face.pitch, x - width + 5
        draw.rectangle((left, top, left + face.size, top + face.size), colour)
        write(picture, (left + face.size + 5, top), name, face, plot.ink)


def _bars(rng: Rng, canvas: Canvas, plot: Plot) -> None:
    x0, y0, x1, y1 = plot.box
    groups, stacked = rng.whole(3, 14), rng.chance(0.3)
    pitch = (x1 - x0) / groups
    slot = pitch * 0.8 / (1 if stacked else len(plot.inks))
    edge = plot.ink if rng.chance(0.2) else None
    for group in range(groups):
        y = y1
        for k, colour in enumerate(plot.inks):
            x = round(x0 + group * pitch + pitch * 0.1 + (0 if stacked else k * slot))
            height = (y1 - y0) * rng.uniform(0.05, 0.95) / (len(plot.inks) if stacked else 1)
            canvas.box((x, round(y - height), x + max(1, round(slot) - 1), y - 1), colour, edge)
            y -= round(height) if stacked else 0


def _curves(rng: Rng, canvas: Canvas, plot: Plot) -> None:
    x0, y0, x1, y1 = plot.box
    count, width = rng.whole(5, 80), rng.pick((1, 1.5, 2, 3))
    marked, filled = rng.chance(0.3) and count < 30, rng.chance(0.15)
    for colour in plot.inks:
        values = np.cumsum(rng.normal(0, 1, count)) + rng.uniform(-2, 2)
        values = (values - values.min()) / max(1e-6, np.ptp(values))
        values = rng.uniform(0.02, 0.3) + values * rng.uniform(0.2, 0.65)
        points = np.stack([np.linspace(x0, x1, count), y1 + (y0 - y1) * values], 1)
        if filled:
            canvas.polygon([(x0, y1), *points, (x1, y1)], mixed(colour, WHITE, 0.5))
        canvas.line(points, colour, width)
        for x, y in points if marked else ():
            canvas.ellipse(around(x, y, 3), colour)


def _points(rng: Rng, canvas: Canvas, plot: Plot) -> None:
    x0, y0, x1, y1 = plot.box
    radius, hollow = rng.uniform(1.5, 5), rng.chance(0.3)
    for colour in plot.inks:
        centre, spread = rng.uniform(0.2, 0.8, 2), rng.uniform(0.03, 0.2)
        for u, v in np.clip(rng.normal(centre, spread, (rng.whole(10, 90), 2)), 0, 1):
            dot = around(x0 + (x1 - x0) * u, y0 + (y1 - y0) * v, radius)
            canvas.ellipse(dot, None if hollow else colour, colour)


def _slices(rng: Rng, canvas: Canvas, plot: Plot) -> None:
    """Draw a pie or a ring."""
    x0, y0, x1, y1 = plot.box
    radius = min(x1 - x0, y1 - y0) * 0.45
    x, y = x0 + radius, (y0 + y1) / 2
    ends = np.cumsum(rng.dirichlet(np.full(len(plot.inks), 3.0))) * 360
    edge = rng.pick((None, plot.paper, plot.ink))
    for start, end, colour in zip([0, *ends[:-1]], ends, plot.inks, strict=True):
        canvas.pie(around(x, y, radius), float(start) - 90, float(end) - 90, colour, edge)
    if rng.chance(0.4):
        canvas.ellipse(around(x, y, radius * rng.uniform(0.4, 0.7)), plot.paper)


PLOTS: Final[tuple[tuple[Callable[[Rng, Canvas, Plot], None], tuple[int, ...]], ...]] = (
    (_bars, (1,)),
    (_bars, (1,)),
    (_curves, (1, 2, 2)),
    (_curves, (1, 2, 2)),
    (_points, (1, 2, 2)),
    (_slices, (1, 2, 3)),
)
"""Functions that draw a plot, and the scales of canvases to draw it on."""
