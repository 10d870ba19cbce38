"""Progress reports of a backbone's training."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True)
class BackboneProgress:
    """One report of a training run; its means and its speed are of the steps since the last one."""

    step: int  # steps of the whole run
    minutes: float  # of the whole run
    # by number of the rate, on noise; rates that no step trained are left out
    rates: dict[int, RateFigures]
    pixels_per_s: float
    lr: float  # learning rate of the last step
    skipped: int  # steps of the whole run whose gradients were not finite


@dataclass(frozen=True)
class RateFigures:
    """Mean loss, bits per pixel and PSNR of one rate."""

    loss: float
    bpp: float
    psnr_db: float


class Meter:
    """Steps and seconds since the last report."""

    def __init__(self, step: int) -> None:
        self.step, self._last = step, time.monotonic()

    def due(self, seconds: float) -> bool:
        """Whether that many seconds have passed since the last report."""
        return time.monotonic() - self._last >= seconds

    def lap(self, step: int) -> tuple[int, float]:
        """Return the steps and seconds since the last report, and start counting anew."""
        now = time.monotonic()
        out = step - self.step, max(now - self._last, 1e-9)
        self.step, self._last = step, now
        return out
