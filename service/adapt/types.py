"""What the adaptation of one picture looks like from outside: its progress and its steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class AdaptProgress:
    """How far the adaptation of one picture has come.

    Attributes:
        phase: "decoder", "latents" or "done", in that order.
        step: steps done. total: steps planned; fewer may be run (early stop).
        bytes: of the best stream so far, real bytes. bpp: the same in bits per pixel.
        psnr_db: its real 8-bit PSNR. first_bytes, first_bpp, first_psnr_db: of the plain stream,
            without adaptation.
    """

    phase: str
    step: int
    total: int
    bytes: int
    bpp: float
    psnr_db: float
    first_bytes: int
    first_bpp: float
    first_psnr_db: float


class Adaptation(Protocol):
    """One picture being adapted to; deterministic by its seed on one machine."""

    @property
    def progress(self) -> AdaptProgress:
        """How far it is."""
        ...

    @property
    def done(self) -> bool:
        """Whether there is nothing left to do."""
        ...

    def advance(self, seconds: float) -> AdaptProgress:
        """Optimise for about that long."""
        ...

    def best(self) -> bytes:
        """The best stream so far; always a valid .rkp."""
        ...

    def checkpoint(self) -> bytes:
        """Everything needed to go on, as safetensors."""
        ...
