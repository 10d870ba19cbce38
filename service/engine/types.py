"""What the engine returns, and the interface that the API and the command line use.

Engine (engine.py) implements `Codec`; a decode-only engine raises on `compress`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from service.errors import BadParameter
from service.picture import Picture, Region


@dataclass(frozen=True)
class Timings:
    """Where the time went, in seconds."""

    swap_s: float = 0.0
    """Making the rate's weights live."""
    net_s: float = 0.0
    """Analysis, synthesis and entropy networks."""
    code_s: float = 0.0
    """Symbols to bits and back."""
    check_s: float = 0.0
    """Decoding the fresh stream again and comparing."""


@dataclass(frozen=True)
class Target:
    """The size or quality that a stream must meet: exactly one of these.

    Attributes:
        bpp: bits of the whole stream per pixel, at most.
        max_bytes: bytes of the whole stream, at most.
        psnr_db: PSNR of the 8-bit RGB reconstruction in dB, at least.
    """

    bpp: float | None = None
    max_bytes: int | None = None
    psnr_db: float | None = None

    def __post_init__(self) -> None:
        """Raise BadParameter unless exactly one is set, to a positive number."""
        given = [v for v in (self.bpp, self.max_bytes, self.psnr_db) if v is not None]
        if len(given) != 1 or not (math.isfinite(given[0]) and given[0] > 0):
            raise BadParameter(f"a target is one positive number, found {given}")


@dataclass(frozen=True, eq=False)
class Compressed:
    """A finished stream.

    Attributes:
        data: the whole `.rkp` stream.
        rate: the rate that was used, 1–8.
        bpp: bits of the whole stream per pixel.
        psnr_db: PSNR of the 8-bit RGB reconstruction, inf when exact, None when not measured.
        timings: of all that was done for it.
        encodes: times that the picture was compressed; more than one where a target was searched.
    """

    data: bytes
    width: int
    height: int
    rate: float
    bpp: float
    psnr_db: float | None
    timings: Timings
    encodes: int = 1


@dataclass(frozen=True, eq=False)
class Decompressed:
    """A decoded picture (or the region that was asked for) and how it was made."""

    picture: Picture
    rate: float
    model: str
    timings: Timings


@dataclass(frozen=True)
class RateInfo:
    """One rate of a model, with the averages over Kodak recorded when it was published.

    Attributes:
        sha256: of its adapter's file, hex; None for the base's own rate. file_bytes: of that file.
    """

    rate: float
    lmbda: float
    kodak_bpp: float | None
    kodak_psnr_db: float | None
    sha256: str | None = None
    file_bytes: int = 0


@dataclass(frozen=True)
class ModelInfo:
    """A model in the store.

    Attributes:
        name: folder in the store.
        sha256: of its base weights, hex.
        parameters: number of weights.
        file_bytes: size of its files.
        rates: what it can be asked for.
        training: how it was trained, from the manifest, as plain JSON values.
    """

    name: str
    sha256: str
    parameters: int
    file_bytes: int
    rates: tuple[RateInfo, ...]
    training: dict[str, object]


class Codec(Protocol):
    """Compress and decompress pictures. Thread-safe; each call is one whole unit of work."""

    def models(self) -> tuple[ModelInfo, ...]:
        """What is loaded."""
        ...

    def compress(self, picture: Picture, rate: float) -> Compressed:
        """Raises RateUnavailable (a BadParameter)."""
        ...

    def compress_to(self, picture: Picture, target: Target) -> Compressed:
        """Raises TargetUnreachable (a BadParameter)."""
        ...

    def decompress(self, data: bytes, region: Region | None = None) -> Decompressed:
        """Raises BadStream, UnknownModel, UnsupportedStream, TooManyPixels, BadParameter."""
        ...

    def self_test(self) -> None:
        """Decode the golden stream of every model. Raises SelfTestFailed."""
        ...
