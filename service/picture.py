"""Pictures as arrays, how far one is from another, and rectangles in them.

No file formats here (images/read.py) and no streams (codec/). Anything may import this module.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from service.errors import BadParameter

U8 = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Picture:
    """An upright 8-bit picture.

    Attributes:
        rgb: [H, W, 3] uint8, non-linear RGB as in the file, in the colour space of `icc`.
        alpha: [H, W] uint8, 255 opaque, not premultiplied; None when every pixel is opaque.
            Where it is 0, `rgb` means nothing.
        grey: all three channels are equal and the file was a grey one; written back as grey.
        icc: ICC profile, None means sRGB.
        exif: Exif block with the orientation already applied and removed, None unless kept.
        notes: sentences on what reading the file changed ("16-bit samples reduced to 8 bits").
    """

    rgb: U8
    alpha: U8 | None = None
    grey: bool = False
    icc: bytes | None = None
    exif: bytes | None = None
    notes: tuple[str, ...] = ()

    @property
    def height(self) -> int:
        """Rows."""
        return int(self.rgb.shape[0])

    @property
    def width(self) -> int:
        """Columns."""
        return int(self.rgb.shape[1])

    @property
    def visible_samples(self) -> float:
        """Sum of (alpha / 255)^2 over the samples of `rgb`: mean squared errors divide by it."""
        if self.alpha is None:
            return self.rgb.size
        return 3 * sum(int(np.square(row, dtype=np.int64).sum()) for row in self.alpha) / 255**2

    def psnr_db(self, squared: float) -> float:
        """PSNR in dB for a sum of squared errors, see `squared_error`; inf where that is 0."""
        if not squared:
            return math.inf
        return 10 * math.log10(255**2 * self.visible_samples / squared)

    def samples(self) -> U8:
        """Return [H, W, C] as image files interleave them: grey or RGB, then alpha if there is any.

        Colours under alpha 0 are cleared: nobody sees them, and they would cost bytes.
        """
        colours = self.rgb[..., :1] if self.grey else self.rgb
        if self.alpha is None:
            return np.ascontiguousarray(colours)
        out = np.concatenate([colours, self.alpha[..., None]], axis=2)
        out[self.alpha == 0] = 0
        return out

    def on_white(self) -> Picture:
        """Return the picture laid on white; itself when it is opaque."""
        if self.alpha is None:
            return self
        rgb = np.empty_like(self.rgb)
        for row in range(self.height):
            weight = self.alpha[row, :, None].astype(np.uint16)
            rgb[row] = (self.rgb[row] * weight + 255 * (255 - weight) + 127) // 255
        return replace(self, rgb=rgb, alpha=None)


def squared_error(a: U8, b: U8, alpha: U8 | None = None) -> float:
    """Sum of the squared differences of two [H, W, 3] arrays in 8-bit steps, as they are seen.

    On any background, a difference of colours under alpha [H, W] is seen alpha / 255 times as
    large, so its square counts (alpha / 255)^2 times.
    """
    squared = 0
    for row in range(len(a)):  # large pictures stay cheap
        difference = np.subtract(a[row], b[row], dtype=np.int64)
        if alpha is not None:
            difference *= alpha[row, :, None]
        squared += int(np.square(difference, out=difference).sum())
    return squared if alpha is None else squared / 255**2


def larger_note(stream_bytes: int, source_bytes: int) -> tuple[str, ...]:
    """What to tell of a stream that is larger than the file it was made of; nothing otherwise."""
    if stream_bytes <= source_bytes:
        return ()
    return (f"the stream of {stream_bytes} bytes is larger than its source of {source_bytes}",)


@dataclass(frozen=True)
class Region:
    """A rectangle in pixels: left edge x, top edge y, width and height (at least 1)."""

    x: int
    y: int
    width: int
    height: int

    @classmethod
    def parse(cls, text: str) -> Region:
        """Read "x,y,w,h".

        Raises:
            BadParameter: not four whole numbers, negative, or an empty rectangle.
        """
        parts = text.split(",")
        if len(parts) != 4 or not all(p.strip().isascii() and p.strip().isdigit() for p in parts):
            raise BadParameter(f"region is {text!r}, expected four whole numbers x,y,w,h")
        if any(len(p.strip()) > 9 for p in parts):
            raise BadParameter(f"region is {text!r}, expected numbers of at most nine digits")
        x, y, width, height = (int(p) for p in parts)
        if width < 1 or height < 1:
            raise BadParameter(f"region is {text!r}, expected a width and height of at least 1")
        return cls(x, y, width, height)

    def check_inside(self, width: int, height: int) -> None:
        """Raise BadParameter unless the rectangle has pixels, all in a picture of that size."""
        if min(self.x, self.y) < 0 or min(self.width, self.height) < 1:
            raise BadParameter(
                f"region {self.x},{self.y},{self.width},{self.height} starts outside the picture "
                "or is empty"
            )
        if self.x + self.width > width or self.y + self.height > height:
            raise BadParameter(
                f"region {self.x},{self.y},{self.width},{self.height} reaches outside "
                f"the picture of {width}x{height} pixels"
            )
