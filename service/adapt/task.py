"""What the adaptation of one picture is asked to do, and how far it has come."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from service.adapt.plan import AdaptationPlan
from service.picture import Picture


@dataclass(frozen=True)
class AdaptationTask:
    """A picture to adapt to, and how.

    Attributes:
        picture: to adapt to. rate16: in sixteenths, of tune PSNR.
        lmbda: weight of the error in the loss at that rate.
        plan: steps of each phase. seed: of the random numbers.
        max_seconds: the annealing is shortened so that the adaptation ends after about that long;
            results then depend on the machine's speed. None sets no limit.
    """

    picture: Picture
    rate16: int
    lmbda: float
    plan: AdaptationPlan
    seed: int = 0
    max_seconds: float | None = None
    graphics: bool = False
    """Whether the stream may have a graphics layer."""

    @property
    def pixels(self) -> int:
        """Pixels of the picture."""
        return self.picture.width * self.picture.height

    def digest(self, identity: bytes) -> str:
        """SHA-256 in hex of all that a checkpoint must agree with, and of the weights' identity."""
        p = self.picture
        values = [p.width, p.height, p.grey, self.rate16, self.seed, self.plan, self.graphics]
        data = hashlib.sha256(identity + repr(values).encode())
        for plane in (p.rgb, p.alpha):
            data.update(b"" if plane is None else np.ascontiguousarray(plane).data)
        return data.hexdigest()


@dataclass(frozen=True)
class AdaptProgress:
    """How far the adaptation of one picture has come.

    Attributes:
        phase: "decoder", "latents" or "done", in that order.
        step: steps done. total: steps planned; fewer may be done.
        bytes: size of the best stream so far. bpp: its bits per pixel.
        psnr_db: PSNR in dB of its 8-bit picture.
        first_bytes, first_bpp, first_psnr_db: of the plain stream, without adaptation; of latents
            that are fitted, which have no plain stream, of the first stream that was measured.
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
    """The adaptation of one picture in progress. Not safe to share between threads."""

    @property
    def progress(self) -> AdaptProgress:
        """How far the adaptation is."""

    @property
    def done(self) -> bool:
        """Whether there is nothing left to do."""

    def best(self) -> bytes:
        """The best stream so far; always a valid .rkp."""

    def advance(self, seconds: float) -> AdaptProgress:
        """Optimise for about that long: at least one step, and what is due after the last one."""

    def checkpoint(self) -> bytes:
        """Everything that is needed to go on."""
