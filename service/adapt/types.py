"""The adaptation of one picture as its callers see it: its steps and its progress."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class AdaptProgress:
    """How far the adaptation of one picture has come.

    Attributes:
        phase: "decoder", "latents" or "done", in that order.
        step: steps done. total: steps planned; fewer may be done.
        bytes: size of the best stream so far. bpp: its bits per pixel.
        psnr_db: PSNR in dB of its 8-bit picture.
        first_bytes, first_bpp, first_psnr_db: of the plain stream, without adaptation.
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
    """An adaptation in progress. With one seed on one machine, its results are always the same."""

    @property
    def progress(self) -> AdaptProgress:
        """How far the adaptation is."""

    @property
    def done(self) -> bool:
        """Whether there is nothing left to do."""

    def advance(self, seconds: float) -> AdaptProgress:
        """Optimise for about that long."""

    def best(self) -> bytes:
        """The best stream so far; always a valid .rkp."""

    def checkpoint(self) -> bytes:
        """Everything that is needed to go on, as safetensors."""
