"""What the adaptation of one picture is asked to do, and how far it has come."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from service.adapt.plan import AdaptationPlan
from service.picture import Picture

if TYPE_CHECKING:
    from service.adapt.checkpoint import AdaptationState


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
        return digest_of(identity, values, p)


def digest_of(identity: bytes, values: object, picture: Picture) -> str:
    """SHA-256 in hex of the weights' identity, the `repr` of some values, and the samples."""
    data = hashlib.sha256(identity + repr(values).encode())
    for plane in (picture.rgb, picture.alpha):
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


class Adaptation(ABC):
    """The adaptation of one picture in progress. Not safe to share between threads.

    With one seed on one machine, its results are always the same.
    """

    _state: AdaptationState
    _best = b""

    def __init__(self, pixels: int) -> None:
        """An adaptation of a picture of some pixels; subclasses set the state and the best."""
        self._pixels = pixels

    @property
    def progress(self) -> AdaptProgress:
        """How far the adaptation is."""
        s, pixels = self._state, self._pixels
        return AdaptProgress(
            "done" if s.done else self._phase,
            s.step,
            self._planned,
            len(self._best),
            8 * len(self._best) / pixels,
            s.psnr_best,
            s.bytes_before,
            8 * s.bytes_before / pixels,
            s.psnr_before,
        )

    @property
    def done(self) -> bool:
        """Whether there is nothing left to do."""
        return self._state.done

    def best(self) -> bytes:
        """The best stream so far; always a valid .rkp."""
        return self._best

    def advance(self, seconds: float) -> AdaptProgress:
        """Optimise for about that long: at least one step, and what is due after the last one."""
        start = last = perf_counter()
        while not self._state.done:
            self._advance_one()
            now = perf_counter()
            self._state.elapsed_s += now - last
            last = now
            if now - start >= seconds:
                break
        return self.progress

    @abstractmethod
    def checkpoint(self) -> bytes:
        """Everything that is needed to go on."""

    @property
    @abstractmethod
    def _phase(self) -> str:
        """What is optimised now: "decoder" or "latents"."""

    @property
    @abstractmethod
    def _planned(self) -> int:
        """Steps that are planned in all."""

    @abstractmethod
    def _advance_one(self) -> None:
        """One step, and what is due after it."""
