"""Procedural pictures of text and charts: pages, code listings and plots."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from PIL import Image, ImageDraw

from service.datasets.primitives import (
    BLACK,
    WHITE,
    Canvas,
    Colour,
    Drawing,
    Rect,
    Rng,
    chance,
    grey,
    hue,
    luminance,
    mixed,
    palette,
    paper_and_ink,
    pick,
    whole,
)
from service.datasets.text import Face, label, lines_of, some_face, words, write


def page(rng: Rng, size: int) -> Drawing:
    """Paragraphs in one to three columns, with headings."""
    paper, ink = paper_and_ink(rng)
    picture = Image.new("RGB", (size, size), paper)
    face = some_face(rng, 8, 64)
    columns = 1 if face.size > 16 else whole(rng, 1, 3)
    gap = whole(rng, 12, 30)
    width = (size - gap) / columns - gap
    heading = ink if chance(rng, 0.6) else mixed(ink, hue(rng, 0.8, luminance(ink) / 255), 0.7)
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
    if chance(rng, 0.3):
        big = Face(round(face.size * rng.uniform(1, 2)), zoom=face.zoom).bolder()
        (line,) = lines_of(rng, big, x1 - x0, 1)
        write(picture, (x0, y), " ".join(line[:5]), big, heading)
        y += big.pitch * 1.3
    pitch = face.size * pick(rng, (1.15, 1.3, 1.5))
    bullet = chance(rng, 0.15)
    lines = lines_of(rng, face, x1 - x0 - 2 * face.size, whole(rng, 1, 9))
    justified = face.length("m") < 12 and chance(rng, 0.3)
    for k, line in enumerate(lines):
        if y > picture.height:
            break
        if justified and k + 1 < len(lines) and len(line) > 1:
            _justify(picture, (x0, y, x1, y), line, face, ink)
        else:
            mark = "- " if bullet and k == 0 else "   " if bullet else ""
            write(picture, (x0, y), mark + " ".join(line), face, ink)
        y += pitch
    return y + pick(rng, (0.3, 0.6, 1)) * pitch


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
    dark = chance(rng, 0.55)
    paper = grey(whole(rng, 0, 45)) if dark else grey(whole(rng, 238, 255))
    if dark and chance(rng, 0.4):
        paper = hue(rng, 0.4, rng.uniform(0.1, 0.22))
    plain = grey(whole(rng, 190, 255)) if dark else grey(whole(rng, 0, 69))
    inks = [mixed(c, WHITE if dark else BLACK, 0.35) for c in palette(rng, 4)]
    face = some_face(rng, 9, 22)
    picture = Image.new("RGB", (size, size), paper)
    gutter = 4 * face.size if chance(rng, 0.6) else 8
    y, indent, pitch = float(rng.uniform(-face.size, 8)), 0, face.pitch
    row = whole(rng, 1, 900)
    while y < size:
        if gutter > 8:
            write(picture, (8, y), str(row), face, mixed(paper, plain, 0.4))
        if chance(rng, 0.04):
            highlight = (0, int(y) - 2, size, int(y) + pitch - 3)
            ImageDraw.Draw(picture).rectangle(highlight, mixed(paper, inks[0], 0.25))
        if chance(rng, 0.85):
            left = gutter + indent * face.length("    ")
            _statement(rng, picture, (left, y, size, y), face, [plain, *inks])
        indent = int(np.clip(indent + rng.integers(-1, 2), 0, 5))
        row += 1
        y += pitch
    return picture


def _statement(rng: Rng, picture: Drawing, box: Rect, face: Face, inks: list[Colour]) -> None:
    """Write one line of code; inks are of plain words, keywords, strings, numbers, comments."""
    x, y = box[:2]
    if chance(rng, 0.12):
        comment = "# " + " ".join(words(rng, whole(rng, 3, 9)))
        write(picture, (x, y), comment, face, inks[4])
        return
    for word in words(rng, whole(rng, 1, 7)):
        k = rng.random()
        if k < 0.2:
            text, ink = pick(rng, KEYWORDS), inks[1]
        elif k < 0.32:
            text, ink = f'"{word}"', inks[2]
        elif k < 0.42:
            text, ink = str(whole(rng, 0, 999)), inks[3]
        else:
            text, ink = word.lower(), inks[0]
        text += pick(rng, SYMBOLS) if chance(rng, 0.5) else ""
        write(picture, (x, y), text, face, ink)
        x += face.length(text + " ")
        if x > box[2]:
            break


def chart(rng: Rng, size: int) -> Drawing:
    """Bars, lines, points or slices, with axes, grid lines and a legend."""
    dark = chance(rng, 0.15)
    paper = grey(whole(rng, 10, 49)) if dark else WHITE
    ink = grey(225) if dark else grey(whole(rng, 0, 89))
    face = some_face(rng, 9, 16)
    face = Face(face.size, face.bold, 0, face.smooth, face.fringed, face.zoom)
    picture = Image.new("RGB", (size, size), paper)
    title = label(rng, 2, 5)
    big = Face(round(face.size * rng.uniform(1.2, 1.8))).bolder()
    write(picture, ((size - big.length(title)) / 2, 8), title, big, ink)
    rows = pick(rng, (1, 1, 1, 2))
    top, height = big.pitch + 14, (size - big.pitch - 14) / rows
    for k in range(rows):
        plot = (5 * face.size, top + k * height, size - 12, top + (k + 1) * height - 3 * face.size)
        draw = pick(rng, PLOTS)
        inks = palette(rng, whole(rng, 1, 6))
        picture = draw(rng, picture, plot, face, inks, ink)
    return picture


def _axes(rng: Rng, picture: Drawing, box: Rect, face: Face, ink: Colour) -> None:
    """Draw axes, ticks and grid lines with numbers around a plot, on whole pixels."""
    draw = ImageDraw.Draw(picture)
    x0, y0, x1, y1 = (round(v) for v in box)
    faint = mixed(picture.getpixel((0, 0)), ink, 0.2)  # type: ignore[arg-type]
    if chance(rng, 0.15):
        draw.rectangle((x0, y0, x1, y1), mixed(faint, WHITE, 0.6))
    steps, unit = whole(rng, 3, 7), pick(rng, (0.2, 1, 5, 10, 25, 100, 1000))
    gridded, framed = chance(rng, 0.65), chance(rng, 0.4)
    for k in range(steps + 1):
        y = round(y1 + (y0 - y1) * k / steps)
        if gridded:
            draw.line((x0, y, x1, y), faint)
        draw.line((x0 - 4, y, x0, y), ink)
        text = f"{k * unit:g}"
        write(picture, (x0 - 7 - face.length(text), y - face.size * 0.6), text, face, ink)
    names = chance(rng, 0.5)
    for k in range(steps):
        x = round(x0 + (x1 - x0) * (k + 0.5) / steps)
        draw.line((x, y1, x, y1 + 4), ink)
        text = words(rng, 1)[0][:6] if names else str(1 + k)
        write(picture, (x - face.length(text) / 2, y1 + 6), text, face, ink)
    draw.line((x0, y0, x0, y1), ink)
    draw.line((x0, y1, x1, y1), ink)
    if framed:
        draw.rectangle((x0, y0, x1, y1), None, ink)


def _legend(
    rng: Rng, picture: Drawing, corner: tuple[float, float], face: Face, inks: list[Colour],
    ink: Colour,
) -> None:  # fmt: skip
    """Draw a legend: a sample of each colour and its name, perhaps in a frame."""
    names = [label(rng, 1, 2)[:14] for _ in inks]
    paper: Colour = picture.getpixel((0, 0))  # type: ignore[assignment]
    x, y = (round(v) for v in corner)
    width = round(max(face.length(name) for name in names)) + 2 * face.size + 12
    draw = ImageDraw.Draw(picture)
    if chance(rng, 0.6):
        frame = (x - width, y, x, y + len(inks) * face.pitch + 8)
        draw.rectangle(frame, paper, mixed(paper, ink, 0.4))
    for k, (name, colour) in enumerate(zip(names, inks, strict=True)):
        top, left = y + 5 + k * face.pitch, x - width + 5
        draw.rectangle((left, top, left + face.size, top + face.size), colour)
        write(picture, (left + face.size + 5, top), name, face, ink)


def _bars(
    rng: Rng, picture: Drawing, box: Rect, face: Face, inks: list[Colour], ink: Colour
) -> Drawing:
    _axes(rng, picture, box, face, ink)
    canvas = Canvas(picture, 1)
    groups, stacked = whole(rng, 3, 14), chance(rng, 0.3)
    pitch = (box[2] - box[0]) / groups
    slot = pitch * 0.8 / (1 if stacked else len(inks))
    edge = ink if chance(rng, 0.2) else None
    for group in range(groups):
        y = box[3]
        for k, colour in enumerate(inks):
            x = round(box[0] + group * pitch + pitch * 0.1 + (0 if stacked else k * slot))
            height = (box[3] - box[1]) * rng.uniform(0.05, 0.95) / (len(inks) if stacked else 1)
            canvas.box((x, round(y - height), x + max(1, round(slot) - 1), y - 1), colour, edge)
            y -= round(height) if stacked else 0
    out = canvas.finish()
    if len(inks) > 1:
        _legend(rng, out, (box[2] - 8, box[1] + 6), face, inks, ink)
    return out


def _curves(
    rng: Rng, picture: Drawing, box: Rect, face: Face, inks: list[Colour], ink: Colour
) -> Drawing:
    _axes(rng, picture, box, face, ink)
    canvas = Canvas(picture, pick(rng, (1, 2, 2)))
    x0, y0, x1, y1 = box
    count, width = whole(rng, 5, 80), pick(rng, (1, 1.5, 2, 3))
    marked, filled = chance(rng, 0.3) and count < 30, chance(rng, 0.15)
    for colour in inks:
        values = np.cumsum(rng.normal(0, 1, count)) + rng.uniform(-2, 2)
        values = (values - values.min()) / max(1e-6, np.ptp(values))
        values = rng.uniform(0.02, 0.3) + values * rng.uniform(0.2, 0.65)
        xs = np.linspace(x0, x1, count)
        points = [(float(x), y1 + (y0 - y1) * float(v)) for x, v in zip(xs, values, strict=True)]
        if filled:
            canvas.polygon([(x0, y1), *points, (x1, y1)], mixed(colour, WHITE, 0.5))
        canvas.line(points, colour, width)
        for x, y in points if marked else ():
            canvas.ellipse((x - 3, y - 3, x + 3, y + 3), colour)
    out = canvas.finish()
    _legend(rng, out, (x1 - 8, y0 + 6), face, inks, ink)
    return out


def _points(
    rng: Rng, picture: Drawing, box: Rect, face: Face, inks: list[Colour], ink: Colour
) -> Drawing:
    _axes(rng, picture, box, face, ink)
    canvas = Canvas(picture, pick(rng, (1, 2, 2)))
    radius, hollow = rng.uniform(1.5, 5), chance(rng, 0.3)
    for colour in inks:
        centre, spread = rng.uniform(0.2, 0.8, 2), rng.uniform(0.03, 0.2)
        for u, v in np.clip(rng.normal(centre, spread, (whole(rng, 10, 90), 2)), 0, 1):
            x, y = box[0] + (box[2] - box[0]) * u, box[1] + (box[3] - box[1]) * v
            around = (x - radius, y - radius, x + radius, y + radius)
            canvas.ellipse(around, None if hollow else colour, colour)
    out = canvas.finish()
    _legend(rng, out, (box[2] - 8, box[1] + 6), face, inks, ink)
    return out


def _slices(
    rng: Rng, picture: Drawing, box: Rect, face: Face, inks: list[Colour], ink: Colour
) -> Drawing:
    """Draw a pie or a ring."""
    canvas = Canvas(picture, pick(rng, (1, 2, 3)))
    paper: Colour = picture.getpixel((0, 0))  # type: ignore[assignment]
    radius = min(box[2] - box[0], box[3] - box[1]) * 0.45
    x, y = box[0] + radius, (box[1] + box[3]) / 2
    ends = np.cumsum(rng.dirichlet(np.full(len(inks), 3.0))) * 360
    edge = pick(rng, (None, paper, ink))
    for start, end, colour in zip([0, *ends[:-1]], ends, inks, strict=True):
        around = (x - radius, y - radius, x + radius, y + radius)
        canvas.pie(around, float(start) - 90, float(end) - 90, colour, edge)
    if chance(rng, 0.4):
        hole = radius * rng.uniform(0.4, 0.7)
        canvas.ellipse((x - hole, y - hole, x + hole, y + hole), paper)
    out = canvas.finish()
    _legend(rng, out, (box[2] - 4, box[1] + 10), face, inks, ink)
    return out


PLOTS: Final[tuple[Callable[[Rng, Drawing, Rect, Face, list[Colour], Colour], Drawing], ...]] = (
    _bars,
    _bars,
    _curves,
    _curves,
    _points,
    _slices,
)
"""Functions that draw a plot within a box and return the picture."""
