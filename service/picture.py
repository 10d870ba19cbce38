"""Pictures as arrays, and rectangles in them: what goes into the codec and comes out of it.

No file formats here (images.py) and no streams (codec/). Anything may import this module.
"""

from __future__ import annotations

from dataclasses import dataclass

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
