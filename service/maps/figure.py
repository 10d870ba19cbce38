"""The layout of a figure: pictures with titles in rows on white, and the bar of their colours."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
from PIL import Image, ImageCms, ImageDraw, ImageFont

from service.images.colour import to_srgb
from service.images.resize import shrink
from service.maps.scale import ColourScale
from service.picture import Picture, View

SIDE: Final = 360
"""Pixels of the longer side of a picture in a figure."""

LEAST_SIDE: Final = 12
"""Pixels of the shorter side; a line of one pixel would not be seen."""

MARGIN: Final = 20
GAP: Final = 24
TITLE, TEXT = 17, 14
"""Heights of letters."""

LINE: Final = 19
"""Height of a line of text."""

BAR_WIDTH: Final = 18
LEAST_BAR: Final = 160
"""Least height of the bar of colours."""

COLUMNS: Final = 5
"""Pictures in a row, at most."""

INK, GREY, FRAME = (20, 20, 20), (90, 90, 90), (170, 170, 170)


@dataclass(frozen=True, eq=False)
class Cell:
    """A picture of a figure.

    Attributes:
        title: above it. lines: of text between the title and the picture.
        image: RGB, at most SIDE pixels wide.
    """

    title: str
    lines: tuple[str, ...]
    image: Image.Image


@dataclass(frozen=True, eq=False)
class MapFigure:
    """A figure.

    Attributes:
        data: a PNG file. width, height: of it in pixels. work_s: seconds of all work for it.
    """

    data: bytes
    width: int
    height: int
    work_s: float = 0.0


def draw_figure(cells: Sequence[Cell], scale: ColourScale, notes: Sequence[str]) -> MapFigure:
    """Draw cells in rows, the bar of colours beside them, and notes below."""
    title_font, font = ImageFont.load_default(TITLE), ImageFont.load_default(TEXT)
    columns = min(len(cells), COLUMNS)
    widths = [max(_text_width(cell), cell.image.width) for cell in cells]
    step = max(widths) + GAP
    head = LINE + 4 + LINE * max(len(cell.lines) for cell in cells) + 4
    row = head + max(max(cell.image.height for cell in cells), LEAST_BAR) + GAP
    rows = -(-len(cells) // columns)
    bar_left = MARGIN + columns * step
    width = bar_left + max(110, round(font.getlength(scale.unit))) + MARGIN
    height = MARGIN + rows * row + LINE * len(notes) + (MARGIN if notes else 0)
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    for i, cell in enumerate(cells):
        left, top = MARGIN + i % columns * step, MARGIN + i // columns * row
        draw.text((left, top), cell.title, INK, title_font)
        for n, line in enumerate(cell.lines):
            draw.text((left, top + LINE + 4 + n * LINE), line, GREY, font)
        sheet.paste(cell.image, (left, top + head))
    bar_height = max(max(cell.image.height for cell in cells[:columns]), LEAST_BAR)
    _draw_bar(sheet, scale, (bar_left, MARGIN + head), bar_height)
    for n, note in enumerate(notes):
        draw.text((MARGIN, MARGIN + rows * row + n * LINE), note, GREY, font)
    file = io.BytesIO()
    sheet.save(file, "PNG")
    return MapFigure(file.getvalue(), width, height)


def _text_width(cell: Cell) -> int:
    font = ImageFont.load_default(TEXT)
    lines = (font.getlength(line) for line in cell.lines)
    return round(max(ImageFont.load_default(TITLE).getlength(cell.title), *lines))


def _draw_bar(sheet: Image.Image, scale: ColourScale, place: tuple[int, int], height: int) -> None:
    """Draw the bar of colours, its largest number at the top, with ticks and the unit."""
    (left, top), draw = place, ImageDraw.Draw(sheet)
    font = ImageFont.load_default(TEXT)
    shares = np.linspace(1, 0, height)[:, None].repeat(BAR_WIDTH, 1)
    bar = Image.fromarray(scale.colours(shares**2 * scale.top))
    sheet.paste(bar, (left, top))
    for share, text in scale.ticks():
        y = top + round((1 - share) * (height - 1))
        draw.line((left + BAR_WIDTH, y, left + BAR_WIDTH + 4, y), INK)
        draw.text((left + BAR_WIDTH + 8, y), text, INK, font, anchor="lm")
    draw.text((left, top - 8), scale.unit, GREY, font, anchor="ls")


def framed(image: Image.Image) -> Image.Image:
    """The picture with its outermost pixels replaced by a thin frame, which ends white ones."""
    ImageDraw.Draw(image).rectangle((0, 0, image.width - 1, image.height - 1), outline=FRAME)
    return image


def fitted(width: int, height: int) -> tuple[int, int]:
    """Width and height at which a figure shows a picture of that size."""
    scale = SIDE / max(width, height)
    return max(LEAST_SIDE, round(width * scale)), max(LEAST_SIDE, round(height * scale))


def small_picture(picture: Picture, size: tuple[int, int]) -> Image.Image:
    """A picture on white in sRGB, at the size of `fitted`; what is enlarged shows its pixels."""
    small = shrink(replace(picture, exif=None), View(max_size=max(size))).on_white()
    image = Image.fromarray(small.rgb)
    if small.icc is not None:
        mode: Literal["L", "RGB"] = "L" if small.grey else "RGB"
        transform = to_srgb(small.icc, mode)
        if transform is not None:
            image = ImageCms.applyTransform(image.convert(mode), transform) or image
    return image.convert("RGB").resize(size, Image.Resampling.NEAREST)
