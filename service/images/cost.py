"""What writing an image file costs, known before it is begun, and how much effort it is worth.

Encoders of large pictures can take minutes and gigabytes, whatever the picture shows, and nothing
can stop them once they run. So each format has an effort for pictures of usual size and a cheaper
one for large pictures, with what these take at worst: the most seconds of one core (of a Zen 4 at
about 4 GHz) and bytes of memory for a pixel, over photographs, noise, few colours and single
colours, with and without noise as alpha, at quality 80 and 100, Pillow 12.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

Format = Literal["png", "webp", "jpeg", "avif"]

USUAL_SECONDS: Final = 6.0
"""Seconds up to which a picture is written with the usual effort."""


@dataclass(frozen=True)
class Effort:
    """Options of Pillow's writer, and what writing takes with them at worst.

    Attributes:
        us: microseconds of one core for each pixel.
        bytes: of memory for each pixel, the picture and the written file included.
    """

    us: float
    bytes: float
    options: Mapping[str, Any] = field(default_factory=dict)

    def seconds(self, pixels: int) -> float:
        """Seconds of one core that writing so many pixels takes at worst."""
        return self.us * pixels / 1e6


@dataclass(frozen=True)
class WriteLimits:
    """What writing one image file may take.

    Attributes:
        seconds: of one core, as `Effort.us` counts them. memory_bytes: the picture included.
    """

    seconds: float
    memory_bytes: int

    def refusal(self, format: Format, quality: int | None, pixels: int) -> str | None:
        """Why a picture of so many pixels is not written in a format; None if it is."""
        effort = effort_for(format, quality, pixels)
        seconds, memory_bytes = effort.seconds(pixels), effort.bytes * pixels
        if seconds <= self.seconds and memory_bytes <= self.memory_bytes:
            return None
        return (
            f"{format} of {pixels / 1e6:.0f} megapixels can take {seconds:.0f} s and "
            f"{memory_bytes / 2**20:.0f} MiB to write, the limits are {self.seconds:g} s and "
            f"{self.memory_bytes / 2**20:.0f} MiB"
        )


_WEBP_LOSSLESS: Final = (
    Effort(1.0, 42, {"lossless": True, "method": 4}),
    Effort(0.08, 21, {"lossless": True, "method": 0, "quality": 20}),  # photographs 8 % larger
)
_EFFORTS: Final[Mapping[Format, tuple[Effort, ...]]] = {
    "png": (Effort(0.14, 13),),
    "jpeg": (Effort(0.03, 11, {"subsampling": "4:4:4"}),),
    "webp": (Effort(0.35, 38, {"method": 4}), Effort(0.22, 28, {"method": 1})),
    "avif": (
        Effort(1.5, 44, {"subsampling": "4:4:4", "speed": 8}),
        Effort(0.9, 42, {"subsampling": "4:4:4", "speed": 9}),
    ),
}
"""Of each format, the usual effort first; of WebP, those with a quality."""


def effort_for(format: Format, quality: int | None, pixels: int) -> Effort:
    """The effort that a picture of so many pixels is written with.

    Without a quality, WebP is lossless.
    """
    efforts = _WEBP_LOSSLESS if format == "webp" and quality is None else _EFFORTS[format]
    usual = (effort for effort in efforts if effort.seconds(pixels) <= USUAL_SECONDS)
    return next(usual, efforts[-1])
