"""What the engine returns, and the interface that the API and the command line use.

Engine (engine.py) implements `Codec`; a decode-only engine raises on `compress`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from service.adapt.types import Adaptation
from service.codec.container import PSNR
from service.codec.tiles import TILE_PIXELS
from service.engine.line import Group
from service.errors import BadParameter, RankpressError
from service.picture import Picture, Region

LEAST_WORK: Final = TILE_PIXELS
"""How much the smallest picture is, in the pixels of `Codec.picture_work`."""


@dataclass(frozen=True)
class Timings:
    """Where the time went, in seconds; of all that were worked on together."""

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
        psnr_db: PSNR of the 8-bit RGB reconstruction in dB, at least; errors count as alpha shows
            them (picture.squared_error).
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
        psnr_db: PSNR of the 8-bit RGB reconstruction, inf when exact, None when not measured;
            errors count as alpha shows them (picture.squared_error).
        timings: of all that was done for it.
        encodes: times that the picture was compressed; more than one where a target was searched.
        tune: the ladder that the rate belongs to, one of container.TUNES.
    """

    data: bytes
    width: int
    height: int
    rate: float
    bpp: float
    psnr_db: float | None
    timings: Timings
    encodes: int = 1
    tune: str = PSNR


@dataclass(frozen=True, eq=False)
class Decompressed:
    """A decoded picture (or the region that was asked for) and how it was made."""

    picture: Picture
    rate: float
    model: str
    timings: Timings


@dataclass(frozen=True)
class StreamShape:
    """What a stream's header says of its picture, before anything is decoded."""

    width: int
    height: int
    has_alpha: bool


@dataclass(frozen=True)
class RateInfo:
    """One rate of a model, with the averages over Kodak recorded when it was published.

    Attributes:
        tune: its ladder, one of container.TUNES. lmbda: of that ladder's loss.
        sha256: of its adapter's file, hex; None for the base's own rate. file_bytes: of that file.
    """

    rate: float
    tune: str
    lmbda: float | None
    kodak_bpp: float | None
    kodak_psnr_db: float | None
    kodak_ms_ssim: float | None
    sha256: str | None = None
    file_bytes: int = 0


@dataclass(frozen=True)
class AdapterInfo:
    """A rate adapter that is loaded.

    Attributes:
        sha256: of its file, hex. base: sha256 of the base weights it is for. model: their name.
        rate, tune: what it makes.
        served: new requests of its rate get it; otherwise a newer one took its place.
        stored: it belongs to the store and cannot be removed.
    """

    sha256: str
    base: str
    model: str
    rate: int
    tune: str
    file_bytes: int
    served: bool
    stored: bool


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
        same_machine: its streams decode only on the machine that made them.
    """

    name: str
    sha256: str
    parameters: int
    file_bytes: int
    rates: tuple[RateInfo, ...]
    training: dict[str, object]
    same_machine: bool = False


class Adapter(Protocol):
    """Adapts streams to pictures."""

    def models(self) -> tuple[ModelInfo, ...]:
        """What is loaded; the first adapts."""
        ...

    def adapt(
        self,
        picture: Picture,
        rate: float,
        *,
        effort: int,
        seed: int = 0,
        max_seconds: float | None = None,
        checkpoint: bytes | None = None,
    ) -> Adaptation:
        """Begin, or go on from a checkpoint.

        Args:
            picture: to adapt to. rate: 1–8, of tune PSNR. effort: 0–4, see adapt/plan.py.
            seed: of everything drawn.
            max_seconds: end about then, with the annealing compressed; results then depend on
                the machine's speed.
            checkpoint: from an adaptation begun with the same arguments.

        Raises:
            RateUnavailable, BadParameter, TooManyPixels: as `Codec.compress`.
            MissingExtra: torch is not installed.
        """
        ...


class Codec(Protocol):
    """Compress and decompress pictures. Thread-safe; each call is one whole unit of work."""

    def models(self) -> tuple[ModelInfo, ...]:
        """What is loaded."""
        ...

    def compress(self, picture: Picture, rate: float, tune: str = PSNR) -> Compressed:
        """Raises RateUnavailable (a BadParameter)."""
        ...

    def compress_to(self, picture: Picture, target: Target, tune: str = PSNR) -> Compressed:
        """Raises TargetUnreachable (a BadParameter)."""
        ...

    def decompress(self, data: bytes, region: Region | None = None) -> Decompressed:
        """Raises BadStream, UnknownModel, UnsupportedStream, TooManyPixels, BadParameter."""
        ...

    @property
    def max_batch(self) -> int:
        """Pictures or streams that are worth working on together; 1 where batches do not pay."""
        ...

    def compress_batch(
        self, pictures: Sequence[Picture], rate: float, tune: str = PSNR
    ) -> list[Compressed | RankpressError]:
        """What `compress` gives or raises for each."""
        ...

    def decompress_batch(self, streams: Sequence[bytes]) -> list[Decompressed | RankpressError]:
        """What `decompress` gives or raises for each."""
        ...

    def picture_group(
        self, size: tuple[int, int] | None, rate: float, tune: str = PSNR
    ) -> Group | None:
        """What compressing a picture of that width and height may run beside."""
        ...

    def stream_group(self, data: bytes, whole: bool) -> Group | None:
        """What decompressing a stream, or a region of it, may run beside."""
        ...

    def stream_shape(self, data: bytes) -> StreamShape:
        """What a stream's header says of its picture. Raises BadStream, UnsupportedStream."""
        ...

    def picture_work(self, width: int, height: int) -> int:
        """How much compressing a picture once is, in pixels. Raises TooManyPixels."""
        ...

    def stream_work(self, data: bytes, region: Region | None = None) -> int:
        """How much decompressing is, in pixels. Raises what `decompress` does of headers."""
        ...

    def adapters(self) -> tuple[AdapterInfo, ...]:
        """Every rate adapter that is loaded."""
        ...

    def add_adapter(
        self, data: bytes, base_sha256: str, rate: int, tune: str = PSNR
    ) -> AdapterInfo:
        """Raises BadAdapter, BadParameter, TooManyBytes; then nothing has changed."""
        ...

    def remove_adapter(self, sha256: str) -> None:
        """Raises UnknownAdapter, BadParameter; then nothing has changed."""
        ...

    def self_test(self) -> None:
        """Decode the golden stream of every model. Raises SelfTestFailed."""
        ...
