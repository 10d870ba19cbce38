"""What the engine returns, and the interface that the API and the command line use.

Engine (engine.py) implements `Codec`; a decode-only engine raises on `compress`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

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


@dataclass(frozen=True, eq=False)
class Compressed:
    """A finished stream.

    Attributes:
        data: the whole `.rkp` stream.
        rate: the rate that was used, 1–8.
        bpp: bits of the whole stream per pixel.
        psnr_db: PSNR of the 8-bit RGB reconstruction, inf when exact, None when not measured.
    """

    data: bytes
    width: int
    height: int
    rate: float
    bpp: float
    psnr_db: float | None
    timings: Timings


@dataclass(frozen=True, eq=False)
class Decompressed:
    """A decoded picture (or the region that was asked for) and how it was made."""

    picture: Picture
    rate: float
    model: str
    timings: Timings


@dataclass(frozen=True)
class RateInfo:
    """One rate of a model, with the averages over Kodak recorded when it was published."""

    rate: float
    lmbda: float
    kodak_bpp: float | None
    kodak_psnr_db: float | None


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

    def decompress(self, data: bytes, region: Region | None = None) -> Decompressed:
        """Raises BadStream, UnknownModel, UnsupportedStream, TooManyPixels, BadParameter."""
        ...

    def self_test(self) -> None:
        """Decode the golden stream of every model. Raises SelfTestFailed."""
        ...
