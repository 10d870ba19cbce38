"""How the training of a backbone goes: what a run reports, and since when."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """How training goes: means since the last report, on noise; pixels/s likewise.

    Attributes:
        rates: by number of the rate; those that no step trained since are left out.
    """

    step: int
    minutes: float
    rates: dict[int, RateProgress]
    pixels_per_s: float
    lr: float
    skipped: int


@dataclass(frozen=True)
class RateProgress:
    """Mean loss, bits per pixel and PSNR of one rate."""

    loss: float
    bpp: float
    psnr_db: float


Report = Callable[[Progress], None]


class Meter:
    """Steps and seconds since the last line of progress."""

    def __init__(self, step: int) -> None:
        self.step, self._last = step, time.monotonic()

    def due(self, seconds: float) -> bool:
        """Whether the last report was so long ago."""
        return time.monotonic() - self._last >= seconds

    def lap(self, step: int) -> tuple[int, float]:
        """Steps and seconds since the last report, which is now."""
        now = time.monotonic()
        out = step - self.step, max(now - self._last, 1e-9)
        self.step, self._last = step, now
        return out
