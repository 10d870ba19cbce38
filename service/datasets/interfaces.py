"""Procedural pictures of user interfaces: bars, menus, tables, buttons, cards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from PIL import Image, ImageDraw

from service.datasets.canvas import Canvas, Rect, shadow
from service.datasets.colours import BLACK, WHITE, Colour, Rng, grey, luminance, mixed
from service.datasets.gradients import Drawing
from service.datasets.text import Face, label, lines_of, number, some_face, write


@dataclass(frozen=True)
class Theme:
    """The look of a program."""

    paper: Colour  # of the ground
    panel: Colour  # of bars and buttons
    ink: Colour  # of text
    faint: Colour  # of less important text
    border: Colour  # of edges
    accent: Colour  # of selected items
    face: Face
    radius: int  # of corners in pixels

    @property
    def on_accent(self) -> Colour:
        """The colour of text on the accent colour."""
        return WHITE if luminance(self.accent) < 150 else BLACK


def some_theme(rng: Rng) -> Theme:
    """A light or dark theme; greys may be tinted."""
    dark = rng.chance(0.3)
    paper = grey(rng.whole(15, 49)) if dark else rng.pick((WHITE, WHITE, grey(245), grey(236)))
    ink = grey(rng.whole(200, 255)) if dark else grey(rng.whole(0, 79))
    tint = rng.hue(0.5, 0.5) if rng.chance(0.4) else grey(128)
    return Theme(
        paper=mixed(paper, tint, 0.1) if dark else paper,
        panel=mixed(paper, tint, rng.uniform(0.05, 0.25)),
        ink=ink,
        faint=mixed(paper, ink, 0.55),
        border=mixed(paper, ink, rng.uniform(0.1, 0.4)),
        accent=rng.hue(rng.uniform(0.5, 1), rng.uniform(0.5, 1)),
        face=some_face(rng, 10, 19),
        radius=rng.pick((0, 0, 3, 5, 8, 14)),
    )


def interface(rng: Rng, size: int) -> Drawing:
    """Part of a program's window or of a web page: bars, menus, tables, buttons."""
    theme = some_theme(rng)
    picture = Image.new("RGB", (size, size), theme.paper)
    top, left = 0, 0
    if rng.chance(0.65):
        top = _title_bar(rng, picture, theme)
    if rng.chance(0.45):
        left = _sidebar(rng, picture, theme, top)
    y = top + rng.whole(4, 20)
    while y < size:
        block = rng.pick(BLOCKS)
        y += block(rng, picture, theme, (left + 14, y, size - 14, size)) + rng.whole(8, 24)
    if rng.chance(0.3):
        _menu(rng, picture, theme)
    return picture


def rounded(
    picture: Drawing, box: Rect, radius: float, fill: Colour, edge: Colour | None = None
) -> None:
    """Draw a box with smooth round corners and an edge of one pixel into a picture in place."""
    x0, y0, x1, y1 = (round(v) for v in box)
    if x1 - x0 < 3 or y1 - y0 < 3:
        return
    if not radius:
        ImageDraw.Draw(picture).rectangle((x0, y0, x1 - 1, y1 - 1), fill, edge)
        return
    canvas = Canvas(picture.crop((x0, y0, x1, y1)), 3)
    canvas.box((0, 0, x1 - x0 - 1, y1 - y0 - 1), fill, edge, radius=radius)
    picture.paste(canvas.finish(), (x0, y0))


def icon(rng: Rng, picture: Drawing, x: float, y: float, side: int, ink: Colour) -> None:
    """Draw a small sign of simple shapes into a picture in place, its corner at (x, y)."""
    at = (round(x), round(y), round(x) + side, round(y) + side)
    canvas = Canvas(picture.crop(at), rng.pick((1, 3, 3, 4)))
    s, kind, stroke = side - 1, rng.whole(0, 8), max(1, side / 10)
    if kind == 0:
        canvas.ellipse((0, 0, s, s), ink)
    elif kind == 1:
        canvas.box((0, 0, s, s), None, ink, stroke, radius=side / 6)
        canvas.line([(s * 0.2, s * 0.5), (s * 0.45, s * 0.75), (s * 0.8, s * 0.25)], ink, stroke)
    elif kind == 2:
        for k in (0.2, 0.5, 0.8):
            canvas.line([(0, s * k), (s, s * k)], ink, stroke)
    elif kind == 3:
        canvas.ellipse((0, 0, s * 0.7, s * 0.7), None, ink, stroke)
        canvas.line([(s * 0.6, s * 0.6), (s, s)], ink, stroke * 1.3)
    elif kind == 4:
        canvas.polygon([(0, s * 0.5), (s * 0.5, 0), (s, s * 0.5), (s * 0.8, s), (s * 0.2, s)], ink)
    elif kind == 5:
        canvas.line([(s * 0.2, s * 0.35), (s * 0.5, s * 0.65), (s * 0.8, s * 0.35)], ink, stroke)
    elif kind == 6:
        canvas.line([(s / 2, 0), (s / 2, s)], ink, stroke)
        canvas.line([(0, s / 2), (s, s / 2)], ink, stroke)
    elif kind == 7:
        canvas.ellipse((s * 0.25, 0, s * 0.75, s * 0.5), ink)
        canvas.pie((0, s * 0.55, s, s * 1.5), 180, 360, ink, None)
    else:
        canvas.box((0, s * 0.2, s, s), None, ink, stroke)
        canvas.box((0, s * 0.1, s * 0.45, s * 0.35), ink)
    picture.paste(canvas.finish(), at[:2])


def _title_bar(rng: Rng, picture: Drawing, theme: Theme) -> int:
    """Draw a title bar and perhaps a row of menus; return their height."""
    face, height = theme.face, theme.face.size + rng.whole(12, 30)
    strong = rng.chance(0.4)
    fill, ink = (theme.accent, theme.on_accent) if strong else (theme.panel, theme.ink)
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 0, picture.width, height - 1), fill)
    draw.line((0, height, picture.width, height), theme.border)
    y = (height - face.size) / 2
    icon(rng, picture, 10, y, face.size, ink)
    write(picture, (18 + face.size, y), label(rng), face.bolder(), ink)
    for k in range(3):
        icon(rng, picture, picture.width - (k + 1) * 2 * face.size, y, face.size, ink)
    if rng.chance(0.5):
        return height + 1
    x = 10.0
    for _ in range(rng.whole(3, 7)):
        text = label(rng, 1, 1)
        write(picture, (x, height + 5), text, face, theme.ink)
        x += face.length(text) + face.size
    draw.line((0, height + face.pitch + 8) + (picture.width, height + face.pitch + 8), theme.border)
    return height + face.pitch + 9


def _sidebar(rng: Rng, picture: Drawing, theme: Theme, top: int) -> int:
    """Draw a navigation list at the left; return its width."""
    face, width = theme.face, rng.whole(90, 170)
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, top, width, picture.height), theme.panel)
    draw.line((width, top, width, picture.height), theme.border)
    pitch = face.size + rng.whole(6, 18)
    chosen = rng.whole(0, 8)
    for k in range((picture.height - top) // pitch):
        y, ink = top + 6 + k * pitch, theme.ink
        if k == chosen:
            box = (4, y - 3, width - 4, y + pitch - 4)
            rounded(picture, box, theme.radius / 2, theme.accent)
            ink = theme.on_accent
        icon(rng, picture, 10, y, face.size, ink)
        text = " ".join(lines_of(rng, face, width - 3 * face.size - 20, 1)[0][:2])
        write(picture, (18 + face.size, y), text, face, ink)
    return width


def _menu(rng: Rng, picture: Drawing, theme: Theme) -> None:
    """Draw an open menu over the rest, with a soft shadow."""
    face, rows = theme.face, rng.whole(4, 10)
    pitch, width = face.size + rng.whole(7, 14), rng.whole(130, 220)
    x, y = rng.whole(0, picture.width - width), rng.whole(0, picture.height * 0.6)
    box = (x, y, x + width, y + rows * pitch + 10)
    shadow(picture, (x, y + 4, box[2], box[3] + 4), theme.radius, rng.uniform(3, 10), 0.35)
    rounded(picture, box, theme.radius / 2, theme.paper, theme.border)
    chosen = rng.whole(0, 12)
    for k in range(rows):
        top, ink = y + 6 + k * pitch, theme.ink
        if k == chosen:
            ImageDraw.Draw(picture).rectangle((x + 1, top, box[2] - 2, top + pitch), theme.panel)
        if rng.chance(0.15):
            ink = theme.faint
        icon(rng, picture, x + 8, top + 3, face.size, ink)
        write(picture, (x + 16 + face.size, top + 3), label(rng), face, ink)


def _table(rng: Rng, picture: Drawing, theme: Theme, box: Rect) -> int:
    """Draw rows of words and numbers; return the height."""
    face, draw = theme.face, ImageDraw.Draw(picture)
    x0, y0, x1, _ = (int(v) for v in box)
    rows, columns = rng.whole(3, 10), rng.whole(2, 5)
    pitch, width = face.size + rng.whole(6, 14), (x1 - x0) / columns
    numbers = rng.random(columns) < 0.5
    striped, ruled, framed = (rng.chance(p) for p in (0.4, 0.5, 0.4))
    for row in range(rows):
        y = y0 + row * pitch
        if row == 0 or (striped and row % 2 == 0):
            draw.rectangle((x0, y, x1, y + pitch - 1), theme.panel)
        if ruled:
            draw.line((x0, y + pitch - 1, x1, y + pitch - 1), theme.border)
        for column in range(columns):
            x = x0 + column * width
            text = number(rng) if numbers[column] and row else label(rng, 1, 2)
            while face.length(text) > width - 10 and len(text) > 1:
                text = text[: len(text) * 2 // 3]
            used = face if row else face.bolder()
            shift = width - 8 - used.length(text) if numbers[column] else 6
            write(picture, (x + shift, y + 4), text, used, theme.ink)
    if framed:
        for column in range(columns + 1):
            x = x0 + round(column * width)
            draw.line((x, y0, x, y0 + rows * pitch - 1), theme.border)
    return rows * pitch


def _buttons(rng: Rng, picture: Drawing, theme: Theme, box: Rect) -> int:
    """Draw a row of buttons; return the height."""
    face, height, x = theme.face, theme.face.size + rng.whole(8, 20), box[0]
    while x < box[2] - 60:
        text = label(rng, 1, 2)
        width = face.length(text) + 2 * face.size
        strong = rng.chance(0.35)
        fill, ink = (theme.accent, theme.on_accent) if strong else (theme.panel, theme.ink)
        button = (x, box[1], x + width, box[1] + height)
        rounded(picture, button, theme.radius, fill, None if strong else theme.border)
        at = (x + face.size, box[1] + (height - face.size) / 2 - 1)
        write(picture, at, text, face, ink)
        x += width + rng.whole(6, 20)
    return height


def _form(rng: Rng, picture: Drawing, theme: Theme, box: Rect) -> int:
    """Draw labelled fields and check boxes; return the height."""
    face, rows = theme.face, rng.whole(2, 5)
    pitch, split = face.size + rng.whole(14, 24), (box[2] - box[0]) * rng.uniform(0.3, 0.45)
    for k in range(rows):
        y = box[1] + k * pitch
        write(picture, (box[0], y + 5), label(rng, 1, 2), face, theme.ink)
        if rng.chance(0.3):
            icon(rng, picture, box[0] + split, y + 3, face.size + 4, theme.accent)
            continue
        field = (box[0] + split, y, box[2], y + pitch - 6)
        rounded(picture, field, theme.radius / 2, theme.paper, theme.border)
        write(picture, (field[0] + 6, y + 4), label(rng), face, theme.faint)
    return rows * pitch


def _cards(rng: Rng, picture: Drawing, theme: Theme, box: Rect) -> int:
    """Draw a row of cards with a coloured top and a few words; return the height."""
    face, count, gap = theme.face, rng.whole(1, 4), rng.whole(8, 20)
    width, height = (box[2] - box[0] + gap) / count - gap, rng.whole(70, 170)
    raised = rng.chance(0.5)
    for k in range(count):
        x, y = box[0] + k * (width + gap), box[1]
        card = (x, y, x + width, y + height)
        if raised:
            shadow(picture, (x, y + 2, x + width, y + height + 2), theme.radius, 5, 0.25)
        rounded(picture, card, theme.radius, theme.paper, theme.border)
        band = height * rng.uniform(0.2, 0.5)
        inner = (x + 6, y + 6, x + width - 6, y + band)
        rounded(picture, inner, theme.radius / 2, rng.pick(rng.palette(3)))
        icon(rng, picture, x + width / 2 - 10, y + band / 2 - 7, 20, theme.paper)
        for row, line in enumerate(lines_of(rng, face, width - 24, 3)):
            top = y + band + 6 + row * face.pitch
            if top + face.pitch < y + height:
                write(picture, (x + 8, top), " ".join(line), face, theme.ink)
    return height


def _words(rng: Rng, picture: Drawing, theme: Theme, box: Rect) -> int:
    """Write a heading and a paragraph; return the height."""
    face, big = theme.face, Face(round(theme.face.size * rng.uniform(1.2, 2.6))).bolder()
    write(picture, (box[0], box[1]), label(rng), big, theme.ink)
    lines = lines_of(rng, face, box[2] - box[0], rng.whole(1, 4))
    for k, line in enumerate(lines):
        y = box[1] + big.pitch + k * face.pitch
        write(picture, (box[0], y), " ".join(line), face, theme.faint)
    return big.pitch + len(lines) * face.pitch


BLOCKS: Final[tuple[Callable[[Rng, Drawing, Theme, Rect], int], ...]] = (
    _table, _buttons, _form, _cards, _words,
)  # fmt: skip
"""Contents of windows; each function draws within a box and returns the height."""
