"""What is done to a decoded picture besides cutting and shrinking it: mirrored, turned, in grey."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from PIL import Image

from service.picture import U8, Picture

Tone = Literal["color", "gray", "bitonal"]


@dataclass(frozen=True)
class Effects:
    """Changes to a picture, applied in this order.

    Attributes:
        mirrored: left and right are exchanged.
        quarter_turns: turns of 90 degrees, clockwise.
        tone: `gray` has the luma of Rec. 601 alone, `bitonal` black where it is below 128 and white
            elsewhere.
    """

    mirrored: bool = False
    quarter_turns: int = 0
    tone: Tone = "color"

    def apply(self, picture: Picture) -> Picture:
        """Return the changed picture. It has no Exif block, whose sizes and thumbnail were wrong.

        A colour picture with a profile keeps three channels, which are equal if the tone is grey:
        the profile would not fit a single one.
        """
        rgb = picture.rgb
        if self.tone != "color":
            luma = np.asarray(Image.fromarray(rgb).convert("L"))
            if self.tone == "bitonal":
                luma = np.where(luma < 128, np.uint8(0), np.uint8(255))
            rgb = np.repeat(luma[..., None], 3, axis=2)
        alpha = picture.alpha
        return replace(
            picture,
            rgb=self._turned(rgb),
            alpha=None if alpha is None else self._turned(alpha),
            grey=picture.grey or (self.tone != "color" and picture.icc is None),
            exif=None,
        )

    def _turned(self, samples: U8) -> U8:
        """Samples of a picture, [H, W, ...], mirrored and turned."""
        if self.mirrored:
            samples = samples[:, ::-1]
        return np.ascontiguousarray(np.rot90(samples, -self.quarter_turns))
