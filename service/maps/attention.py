"""The attention of one window of a Swin backbone, and its figure at several rates.

It shows how prompts move the attention with the rate, as figure 6 of "Progressive Learning with
Visual Prompt Tuning for Variable-Rate Image Compression" does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from PIL import Image, ImageDraw

from service.codec.sizes import WINDOW
from service.codec.tiles import Box
from service.maps.figure import Cell, MapFigure, draw_figure, fitted, framed, small_picture
from service.maps.scale import F32, NOTHING, ColourScale
from service.picture import U8, Picture

UNIT: Final = "% of attention"
TOKEN: Final = 28
"""Pixels of a token's side in a figure."""

GAP: Final = 12
MARK: Final = (230, 30, 30)

TOKENS_NOTE: Final = (
    "Weights of the window's 8x8 tokens for the token in the red square, mean of all heads."
)
PROMPTS_NOTE: Final = "Below them: the weights of the window's 4x4 prompts."


@dataclass(frozen=True, eq=False)
class WindowAttention:
    """The attention of one token, averaged over the heads of a layer. All weights sum to 1.

    Attributes:
        tokens: [8, 8] float32, weights of the tokens of its window; NaN outside of the picture.
        prompts: [4, 4] float32, likewise of the prompts of the window; None without prompts.
        pixels: under the window; it may reach beyond the picture.
        query: row and column of the token in its window.
    """

    tokens: F32
    prompts: F32 | None
    pixels: Box
    query: tuple[int, int]

    @property
    def prompt_share(self) -> float:
        """The weight of all prompts together, 0 to 1."""
        return 0.0 if self.prompts is None else float(np.nansum(self.prompts))


def draw_attention(picture: Picture, windows: Mapping[float, WindowAttention]) -> MapFigure:
    """Draw the picture in small, the window, and its attention at each rate in the same colours."""
    any_window = next(iter(windows.values()))
    numbers = [one.tokens for one in windows.values()]
    numbers += [one.prompts for one in windows.values() if one.prompts is not None]
    scale = ColourScale.of(numbers, UNIT, 100)
    cells = [
        Cell(
            "picture",
            (f"{picture.width}x{picture.height} pixels",),
            _overview(picture, any_window),
        ),
        Cell("window", (_place(any_window),), _window(picture, any_window)),
    ]
    for rate, one in windows.items():
        share = "no prompts" if one.prompts is None else f"prompts: {one.prompt_share:.1%}"
        cells.append(Cell(f"rate {rate:g}", (share,), _heat(one, scale)))
    has_prompts = any(one.prompts is not None for one in windows.values())
    return draw_figure(cells, scale, [TOKENS_NOTE] + [PROMPTS_NOTE] * has_prompts)


def _place(one: WindowAttention) -> str:
    pixels = one.pixels
    return f"{pixels.width}x{pixels.height} pixels from {pixels.left},{pixels.top}"


def _overview(picture: Picture, one: WindowAttention) -> Image.Image:
    """The picture in small with the window outlined."""
    size = fitted(picture.width, picture.height)
    image = framed(small_picture(picture, size))
    x, y = size[0] / picture.width, size[1] / picture.height
    pixels, draw = one.pixels, ImageDraw.Draw(image)
    corners = [
        max(0, pixels.left * x),
        max(0, pixels.top * y),
        min(size[0] - 1, pixels.right * x),
        min(size[1] - 1, pixels.bottom * y),
    ]
    draw.rectangle([round(c) for c in corners], outline=MARK, width=2)
    return image


def _window(picture: Picture, one: WindowAttention) -> Image.Image:
    """The pixels under the window, enlarged."""
    pixels, side = one.pixels, WINDOW * TOKEN
    whole = pixels.cut(Box(0, 0, picture.height, picture.width))
    alpha = None if picture.alpha is None else picture.alpha[whole.slices]
    inside = replace(picture, rgb=np.ascontiguousarray(picture.rgb[whole.slices]), alpha=alpha)
    place = whole.relative(pixels)
    window = Image.new("RGB", (pixels.width, pixels.height), NOTHING)
    window.paste(small_picture(inside, (whole.width, whole.height)), (place.left, place.top))
    image = framed(window.resize((side, side), Image.Resampling.NEAREST))
    _mark(image, one)
    return image


def _heat(one: WindowAttention, scale: ColourScale) -> Image.Image:
    """The weights of tokens, and below them those of prompts at half the size."""
    tokens = _enlarged(scale.colours(one.tokens), WINDOW * TOKEN)
    _mark(tokens, one)
    if one.prompts is None:
        return tokens
    prompts = _enlarged(scale.colours(one.prompts), tokens.width // 2)
    image = Image.new("RGB", (tokens.width, tokens.height + GAP + prompts.height), "white")
    image.paste(tokens, (0, 0))
    image.paste(prompts, (0, tokens.height + GAP))
    return image


def _enlarged(rgb: U8, side: int) -> Image.Image:
    return framed(Image.fromarray(rgb).resize((side, side), Image.Resampling.NEAREST))


def _mark(image: Image.Image, one: WindowAttention) -> None:
    """Outline the token whose attention is shown."""
    top, left = (TOKEN * place for place in one.query)
    ImageDraw.Draw(image).rectangle(
        (left, top, left + TOKEN - 1, top + TOKEN - 1), outline=MARK, width=2
    )
