"""Pictures as arrays, their squared error, and rectangles of pixels.

Image files are read in images/, streams in codec/.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from service.errors import BadParameter

U8 = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Picture:
    """An upright 8-bit picture.

    Attributes:
        rgb: [H, W, 3] uint8, non-linear RGB in the colour space of `icc`.
        alpha: [H, W] uint8, 255 opaque, not premultiplied; None when every pixel is opaque.
            Where it is 0, `rgb` means nothing.
        grey: whether the file was grey; then all three channels are equal, and files are written
            as grey.
        icc: ICC profile, None for sRGB.
        exif: Exif block with the orientation applied and removed; None unless it was kept.
        notes: sentences about what reading the file changed, such as "16-bit samples reduced to 8
            bits".
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

    def psnr_db(self, squared: float) -> float:
        """PSNR in dB for a sum of squared errors as `squared_error` returns it; inf if it is 0.

        The mean is over the samples of `rgb`, each weighted by (alpha / 255)^2 like its error.
        """
        if not squared:
            return math.inf
        return 10 * math.log10(255**2 * self.rgb.size * self.visible_share / squared)

    @property
    def visible_share(self) -> float:
        """The mean of (alpha / 255)^2, 1 for opaque pictures: how much errors of colours count."""
        if self.alpha is None:
            return 1.0
        rows = (int(np.square(row, dtype=np.int64).sum()) for row in self.alpha)
        return sum(rows) / 255**2 / self.alpha.size

    def samples(self) -> U8:
        """Samples as image files interleave them: [H, W, 1 or 3 colours, and alpha if present].

        Colours under alpha 0 are cleared, because they are invisible and would cost bytes.
        """
        colours = self.rgb[..., :1] if self.grey else self.rgb
        if self.alpha is None:
            return np.ascontiguousarray(colours)
        out = np.concatenate([colours, self.alpha[..., None]], axis=2)
        out[self.alpha == 0] = 0
        return out

    def on_white(self) -> Picture:
        """The picture laid on white; an opaque picture is returned itself."""
        if self.alpha is None:
            return self
        rgb = np.empty_like(self.rgb)
        for row in range(self.height):
            weight = self.alpha[row, :, None].astype(np.uint16)
            rgb[row] = (self.rgb[row] * weight + 255 * (255 - weight) + 127) // 255
        return replace(self, rgb=rgb, alpha=None)


def squared_error(a: U8, b: U8, alpha: U8 | None = None) -> float:
    """Sum of squared differences of two pictures, in squared 8-bit steps.

    On any background, a difference of colours under alpha shows alpha / 255 times as large, so its
    square is weighted by (alpha / 255)^2.

    Args:
        a, b: [H, W, 3] uint8.
        alpha: [H, W] uint8, None for opaque pictures.
    """
    squared = 0
    for row in range(len(a)):  # row by row, so that large pictures take little memory
        difference = np.subtract(a[row], b[row], dtype=np.int64)
        if alpha is not None:
            difference *= alpha[row, :, None]
        squared += int(np.square(difference, out=difference).sum())
    return squared if alpha is None else squared / 255**2


def larger_note(stream_bytes: int, source_bytes: int) -> tuple[str, ...]:
    """A note if a stream is larger than the image file that it was made from; else no note."""
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
            BadParameter: the text is not four non-negative integers, or the rectangle is empty.
        """
        parts = [part.strip() for part in text.split(",")]
        if len(parts) != 4 or not all(re.fullmatch("[0-9]{1,9}", part) for part in parts):
            raise BadParameter(
                f"region is {text!r}, expected four whole numbers x,y,w,h of at most nine digits"
            )
        x, y, width, height = map(int, parts)
        if width < 1 or height < 1:
            raise BadParameter(f"region is {text!r}, expected a width and height of at least 1")
        return cls(x, y, width, height)

    def check_inside(self, width: int, height: int) -> None:
        """Raise BadParameter unless the rectangle has pixels, all of them inside the picture."""
        region = f"region {self.x},{self.y},{self.width},{self.height}"
        if min(self.x, self.y) < 0 or min(self.width, self.height) < 1:
            raise BadParameter(f"{region} starts outside the picture or is empty")
        if self.x + self.width > width or self.y + self.height > height:
            raise BadParameter(f"{region} reaches outside the picture of {width}x{height} pixels")

    @classmethod
    def of(cls, width: int, height: int) -> Region:
        """The whole of a picture."""
        return cls(0, 0, width, height)


@dataclass(frozen=True)
class View:
    """Which part of a picture to decode, and at which size. It is never enlarged.

    Attributes:
        region: in pixels of the picture; None for the whole of it.
        max_size: of the longest side in pixels; None to keep the size.
        size: exact width and height in pixels, in place of max_size.
        partial: whether a stream that is cut gives what there is of it, and no error.
    """

    region: Region | None = None
    max_size: int | None = None
    size: tuple[int, int] | None = None
    partial: bool = False

    def part(self, width: int, height: int) -> Region:
        """The part of a picture of that size.

        Raises:
            BadParameter: it reaches outside the picture, or would have to be enlarged.
        """
        if self.region is not None:
            self.region.check_inside(width, height)
        part = self.region or Region.of(width, height)
        if self.max_size is not None and self.max_size < 1:
            raise BadParameter(f"max_size is {self.max_size}, expected at least 1")
        if self.size is not None:
            w, h = self.size
            if not (1 <= w <= part.width and 1 <= h <= part.height):
                raise BadParameter(
                    f"size is {w}x{h}, expected 1x1 to {part.width}x{part.height} pixels"
                )
        return part

    def fit(self, width: int, height: int) -> tuple[int, int]:
        """The size of the result, for a part of that size."""
        if self.size is not None:
            return self.size
        scale = 1.0 if self.max_size is None else min(1, self.max_size / max(width, height))
        return max(1, round(width * scale)), max(1, round(height * scale))


WHOLE = View()
"""All of a picture in its own size."""
