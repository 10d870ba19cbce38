"""Rows of text for the procedural pictures: random words, and writing them into a picture.

Text is set in the two fonts that Pillow carries: Aileron, which FreeType smooths, and an old bitmap
font. Aileron lacks accented letters there, so accents are combining characters in the words and are
drawn over their letters.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, replace
from functools import cache
from typing import Final

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from service.datasets.canvas import Point
from service.datasets.colours import Colour, Rng
from service.datasets.gradients import Drawing

LETTERS: Final = "etaoinshrdlcumwfgypbvkjxqz"
LETTER_SHARES: Final = np.array(
    [12.7, 9.1, 8.2, 7.5, 7, 6.7, 6.3, 6.1, 6, 4.3, 4, 2.8, 2.8, 2.4, 2.4, 2.2, 2, 2, 1.9, 1.5]
    + [1, 0.8, 0.2, 0.2, 0.1, 0.1]
)
"""Frequencies of LETTERS in English, per cent."""

LENGTH_SHARES: Final = np.array([3, 17, 20, 15, 11, 9, 8, 6, 4, 3, 2, 1, 1])
"""Frequencies of words of 1, 2, ... letters in English, per cent."""

ACCENTS: Final = {"\u0301": "\u00b4", "\u0300": "`"}
"""The glyph that is drawn for each combining accent; all are put on vowels."""

STOPS: Final = (",", ",", ",", ".", ".", ".", ";", ":", "!", "?")

BITMAP_PX: Final = 11
"""Height of the bitmap font."""


@dataclass(frozen=True)
class Face:
    """How text is set."""

    size: int  # of the font in pixels
    bold: float = 0  # pixels by which strokes are widened on each side
    slant: float = 0  # of italics, pixels to the right per pixel upwards
    smooth: bool = True  # anti-aliased
    fringed: bool = False  # drawn on the red, green and blue thirds of a pixel, as on LCD screens
    zoom: int = 0  # factor by which the bitmap font is enlarged; 0 for Aileron

    @property
    def pitch(self) -> int:
        """Usual distance between lines, in pixels."""
        return round(1.3 * self.size)

    def length(self, text: str) -> float:
        """Width of a text in pixels."""
        if self.zoom:
            return 6 * self.zoom * len(unicodedata.normalize("NFC", text))
        return _aileron(self.size).getlength(_split(text)[0])

    def bolder(self) -> Face:
        """The bold face of the same size."""
        return replace(self, bold=max(0.4, self.size / 28))


def some_face(rng: Rng, low: int = 8, high: int = 64) -> Face:
    """A random typeface of a size from `low` to `high`; smaller sizes are more likely."""
    size = round(low * (high / low) ** (rng.random() ** 1.5))
    if rng.chance(0.1):
        zoom = max(1, size // BITMAP_PX)
        return Face(BITMAP_PX * zoom, zoom=zoom)
    bold = rng.uniform(0.2, 1) * size / 20 if rng.chance(0.2) else 0
    slant = rng.uniform(0.15, 0.3) if rng.chance(0.08) else 0
    smooth = rng.chance(0.9)
    return Face(size, bold, slant, smooth, smooth and size < 24 and rng.chance(0.2))


def words(rng: Rng, count: int) -> list[str]:
    """Random words of the letters and lengths of English, a few of them accented or numbers."""
    lengths = 1 + rng.choice(LENGTH_SHARES.size, count, p=LENGTH_SHARES / LENGTH_SHARES.sum())
    drawn = rng.choice(len(LETTERS), int(lengths.sum()), p=LETTER_SHARES / LETTER_SHARES.sum())
    letters = "".join(LETTERS[k] for k in drawn)
    ends = np.cumsum(lengths)
    kinds = rng.random(count)
    out = []
    for n, end, kind in zip(lengths, ends, kinds, strict=True):
        word = letters[end - n : end]
        if kind < 0.05:
            word = str(int(rng.integers(10 ** min(int(n), 5))))
        elif kind < 0.08:
            vowel = next((c for c in word if c in "aeou"), "")
            word = word.replace(vowel, vowel + rng.pick(tuple(ACCENTS)), 1) if vowel else word
        elif kind < 0.2:
            word = word.capitalize()
        elif kind < 0.22:
            word = word.upper()
        out.append(word)
    return out


def label(rng: Rng, low: int = 1, high: int = 3) -> str:
    """A few words, as on buttons and in menus."""
    text = " ".join(words(rng, rng.whole(low, high)))
    return text[:1].upper() + text[1:] if rng.chance(0.85) else text.upper()


def number(rng: Rng) -> str:
    """A number as it is written in tables."""
    value = float(10 ** rng.uniform(0, 5))
    text = f"{value:,.{rng.pick((0, 0, 1, 2))}f}"
    return rng.pick(("", "", "", "$", "-", "+")) + text + rng.pick(("", "", "", "%", " kB"))


def prose(rng: Rng, count: int) -> list[str]:
    """Words with the punctuation and the capitals of sentences."""
    out = words(rng, count)
    starts = True
    for k, stopped in enumerate(rng.random(count) < 0.14):
        if starts:
            out[k] = out[k][:1].upper() + out[k][1:]
        starts = False
        if stopped:
            stop = rng.pick(STOPS)
            out[k] += stop
            starts = stop in ".!?"
    return out


def lines_of(rng: Rng, face: Face, width: float, count: int) -> list[list[str]]:
    """At most `count` lines of prose, each with as many words as fit into `width` pixels."""
    mean = face.length("etaoin shrdlu cmwfg ypbvk") / 25 * 5.6
    width = max(width, mean)
    space = face.length(" ")
    out: list[list[str]] = [[]]
    used = 0.0
    for word in prose(rng, 1 + int(1.2 * count * width / mean)):
        length = face.length(word)
        if out[-1] and used + length > width:
            if len(out) == count:
                break
            out.append([])
            used = 0.0
        out[-1].append(word)
        used += length + space
    return out


def write(picture: Drawing, at: Point, text: str, face: Face, ink: Colour) -> None:
    """Write one row of text into a picture in place, its top left corner `at`."""
    if face.zoom or face.slant:
        _paste_text(picture, at, text, face, ink)
    elif face.fringed:
        _write_thirds(picture, at, text, face, ink)
    else:
        _draw_text(picture, at, text, face, ink)


def _draw_text(picture: Drawing, at: Point, text: str, face: Face, ink: Colour | int) -> None:
    draw = ImageDraw.Draw(picture)
    draw.fontmode = "L" if face.smooth else "1"
    font = _aileron(face.size)
    plain, accents = _split(text)
    draw.text(at, plain, ink, font, stroke_width=face.bold)
    for k, accent in accents:
        spare = font.getlength(plain[k]) - font.getlength(accent)
        x = at[0] + font.getlength(plain[:k]) + spare / 2
        draw.text((x, at[1]), accent, ink, font, stroke_width=face.bold)


def _write_thirds(picture: Drawing, at: Point, text: str, face: Face, ink: Colour) -> None:
    """Write red, green and blue shifted by a third of a pixel each, as on LCD screens."""
    left, top = int(at[0]) - 4, int(at[1]) - 4
    box = (left, top, left + int(face.length(text)) + 12, top + 2 * face.size + 8)
    bands = picture.crop(box).split()
    for shift, band, level in zip((1 / 3, 0, -1 / 3), bands, ink, strict=True):
        _draw_text(band, (at[0] - left + shift, at[1] - top), text, face, level)
    picture.paste(Image.merge("RGB", bands), (left, top))


def _paste_text(picture: Drawing, at: Point, text: str, face: Face, ink: Colour) -> None:
    """Write through a mask, which is enlarged or slanted."""
    margin = face.size // 2
    width, height = int(face.length(text)) + 3 * margin, face.size + 2 * margin
    if face.zoom:
        mask = Image.new("L", (width // face.zoom, height // face.zoom))
        start = (margin // face.zoom, margin // face.zoom)
        ImageDraw.Draw(mask).text(start, unicodedata.normalize("NFC", text), 255, _bitmap_font())
        larger = (mask.width * face.zoom, mask.height * face.zoom)
        mask = mask.resize(larger, Image.Resampling.NEAREST)
    else:
        mask = Image.new("L", (width, height))
        _draw_text(mask, (margin, margin), text, face, 255)
        shear = (1, face.slant, -face.slant * (margin + face.size), 0, 1, 0)
        affine = Image.Transform.AFFINE
        mask = mask.transform(mask.size, affine, shear, Image.Resampling.BILINEAR)
    picture.paste(ink, (round(at[0]) - margin, round(at[1]) - margin), mask)


def _split(text: str) -> tuple[str, list[tuple[int, str]]]:
    """Split a text into plain letters, and its accents with the positions of their letters."""
    if text.isascii():
        return text, []
    plain, accents = "", []
    for c in text:
        if c in ACCENTS:
            accents.append((len(plain) - 1, ACCENTS[c]))
        else:
            plain += c
    return plain, accents


@cache
def _aileron(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font.font_variant(layout_engine=ImageFont.Layout.BASIC)  # Raqm is slower, and optional.


@cache
def _bitmap_font() -> ImageFont.ImageFont:
    return ImageFont.load_default_imagefont()
