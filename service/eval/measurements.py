"""One measurement of one picture with one codec at one setting, and our codec's names."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from service.codec.container import PSNR, TUNES

OURS: Final = "rankpress"
"""Our codec at tune PSNR; each other tune is a codec of its own."""


def our_name(tune: str) -> str:
    """Return our codec's name at a tune: "rankpress", or "rankpress-ms-ssim"."""
    return OURS if tune == PSNR else f"{OURS}-{tune}"


OUR_NAMES: Final = tuple(our_name(tune) for tune in TUNES)


@dataclass(frozen=True)
class Measurement:
    """Size, quality and times of one compressed file.

    Attributes:
        image: name of the picture. sha256: of its pixels, first 16 hex digits.
        width, height: of the picture in pixels.
        codec: one of OUR_NAMES, or a peer's name. setting: "rate 4", or "q65".
        bytes: of the whole file. bpp: bits of the file per pixel.
        psnr_db, ms_ssim, ssimulacra2: see metrics.py; None where not measured.
        encode_ms, decode_ms: in memory, pixels to file bytes and back, one run.
    """

    image: str
    sha256: str
    width: int
    height: int
    codec: str
    setting: str
    bytes: int
    bpp: float
    psnr_db: float
    ms_ssim: float | None
    ssimulacra2: float | None
    encode_ms: float
    decode_ms: float

    @property
    def key(self) -> tuple[str, str, str]:
        """Pixels, codec and setting: measurements with equal keys are of the same file."""
        return self.sha256, self.codec, self.setting

    def value(self, metric: str) -> float | None:
        """Return a metric by its name; None where it was not measured or is infinite."""
        values = {"psnr_db": self.psnr_db, "ms_ssim": self.ms_ssim, "ssimulacra2": self.ssimulacra2}
        value = values[metric]
        return value if value is not None and math.isfinite(value) else None
