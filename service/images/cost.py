"""Time and memory to write an image file, known before writing begins, and the effort for its size.

Encoders can take minutes and gigabytes for a large picture, whatever it shows, and nothing can stop
them. So each format has an effort for pictures of usual size and a cheaper one for large pictures.
The costs are the most seconds of one core (a Zen 4 at about 4 GHz) and bytes of memory per pixel
that were measured over photographs, noise, few colours and single colours, with and without noise
as alpha, at quality 80 and 100, with Pillow 12.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

Format = Literal["png", "webp", "jpeg", "avif"]

USUAL_SECONDS: Final = 6.0
"""Seconds that writing may take with the usual effort; a picture that takes longer gets less."""


@dataclass(frozen=True)
class Effort:
    """Options of Pillow's writer, and the highest cost of writing with them.

    Attributes:
        us: microseconds of one core per pixel.
        bytes: bytes of memory per pixel, including those of the picture and of the written file.
        options: of `Image.save`.
    """

    us: float
    bytes: float
    options: Mapping[str, Any] = field(default_factory=dict)

    def seconds(self, pixels: int) -> float:
        """Return the most seconds of one core to write a number of pixels."""
        return self.us * pixels / 1e6


@dataclass(frozen=True)
class WriteLimits:
    """Limits on the cost of writing one image file.

    Attributes:
        seconds: of one core. memory_bytes: including those of the picture.
    """

    seconds: float
    memory_bytes: int

    def refusal(self, format: Format, quality: int | None, pixels: int) -> str | None:
        """Return why a picture is too large to be written in a format; None if it is not."""
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
    Effort(
        0.08, 21, {"lossless": True, "method": 0, "quality": 20}
    ),  # photographs become 8 % larger
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
"""Efforts of each format, the usual one first; those of WebP are for lossy files."""


def effort_for(format: Format, quality: int | None, pixels: int) -> Effort:
    """Return the effort to write a number of pixels with. WebP without a quality is lossless."""
    efforts = _WEBP_LOSSLESS if format == "webp" and quality is None else _EFFORTS[format]
    usual = (effort for effort in efforts if effort.seconds(pixels) <= USUAL_SECONDS)
    return next(usual, efforts[-1])
