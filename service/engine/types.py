"""What the engine returns, and the interface of a codec, which Engine and zoo.ZooCodec implement.

Without torch, `Engine.compress` and `Engine.adapt` raise MissingExtra.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from service.codec.container import PSNR
from service.codec.graphics import Mask
from service.codec.tiles import TILE_PIXELS
from service.engine.admission_queue import RequestGroup
from service.engine.target import Target
from service.errors import RankpressError
from service.picture import WHOLE, Picture, View
from service.store.decoder_files import DecoderFiles as DecoderFiles  # also for other codecs
from service.store.model import StoredModel

NO_MODEL: Final = "none"
"""Name of the model of a lossless stream."""

LEAST_WORK: Final = TILE_PIXELS
"""How much work the smallest picture is, in the pixels of `Load`."""


@dataclass(frozen=True)
class Timings:
    """Seconds of each part of the work; of a batch, those of all its requests together."""

    swap_s: float = 0.0
    """Merging the rate's weights, or waiting for them."""
    net_s: float = 0.0
    """Analysis, synthesis and entropy networks."""
    code_s: float = 0.0
    """Symbols to bits and back."""
    graphics_s: float = 0.0
    """Searching for a graphics layer (runtime/graphics_search.py)."""
    check_s: float = 0.0
    """Decoding the fresh stream again and comparing."""


@dataclass(frozen=True, eq=False)
class Compressed:
    """A finished stream.

    Attributes:
        data: the whole `.rkp` stream. bpp: its bits per pixel.
        rate: that was used, 1–8, or container.LOSSLESS where the stream holds every pixel exactly.
        tune: its ladder, one of container.TUNES.
        psnr_db: PSNR of the 8-bit RGB reconstruction, inf when exact, None when not measured;
            errors are weighted by alpha (picture.squared_error).
        timings: of all work for it.
        model: name of the one that made it, NO_MODEL where decoding needs none.
        encodes: times that the picture was compressed; more than one where a target was searched.
        graphics_share: share of the picture's blocks that the graphics layer holds exactly, 0–1.
    """

    data: bytes
    width: int
    height: int
    rate: float
    bpp: float
    psnr_db: float | None
    timings: Timings
    model: str = NO_MODEL
    encodes: int = 1
    tune: str = PSNR
    graphics_share: float = 0.0


@dataclass(frozen=True, eq=False)
class Decompressed:
    """A decoded picture, or the view of it that was asked for.

    Attributes:
        rate: of the stream, 1–8 or container.LOSSLESS; the quality of a latent stream.
        model: name of the one that made the stream, NO_MODEL where it needs none; of a latent
            stream, name of the autoencoder.
        complete: share of the coded picture that was there, 0–1; below 1 where the stream was cut.
    """

    picture: Picture
    rate: float
    model: str
    timings: Timings
    complete: float = 1.0


@dataclass(frozen=True, eq=False)
class StreamBits:
    """Where a stream spends its bits.

    Attributes:
        width, height: of the picture in pixels.
        rate: of the stream, 1–8 or container.LOSSLESS.
        bits: [ceil(H/16), ceil(W/16)] float32, ideal code length of the latents of each block of
            16×16 pixels; 0 where nothing is coded.
        exact: likewise, bool: the blocks that the graphics layer holds, whose bits are not told.
        latent_bytes: size of the coded latents, to which `bits` sum up within some bytes.
    """

    width: int
    height: int
    rate: float
    bits: NDArray[np.float32]
    exact: Mask
    latent_bytes: int


@dataclass(frozen=True)
class StreamShape:
    """What a stream's header says of its picture, before anything is decoded."""

    width: int
    height: int
    has_alpha: bool


@dataclass(frozen=True)
class Load:
    """How much work a request is and what it may share a call with, known before it is done.

    Attributes:
        pixels: see codec.tiles.work_pixels. group: None where it is worked on alone, in any order.
    """

    pixels: int = LEAST_WORK
    group: RequestGroup | None = None


@dataclass(frozen=True)
class StreamPreview:
    """What a stream's header tells: its picture, and the work to decompress it."""

    shape: StreamShape
    load: Load


@dataclass(frozen=True)
class RateInfo:
    """One rate of a model, with the averages over Kodak recorded when it was published.

    Attributes:
        rate: 1–8. tune: its ladder, one of container.TUNES.
        lmbda: weight of the error in that ladder's loss; None for an adapter that does not say.
        kodak_bpp: bits per pixel. kodak_psnr_db: PSNR in dB. kodak_ms_ssim: 1 for equal pictures.
        sha256: of its adapter's file, hex; None for the base's own rate. file_bytes: its size.
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
        sha256: of its file, hex. base: sha256 of the base weights that it is for, hex.
        model: name of the model with that base. rate, tune: that it makes.
        served: whether new requests for its rate use it; otherwise a newer adapter replaces it.
        stored: whether it belongs to the store, and so cannot be removed.
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
        name: folder in the store. sha256: of its base weights, hex.
        parameters: number of weights. file_bytes: size of its files.
        training: record of its training from the manifest, as plain JSON values.
        family: of its backbone: "conv" or "swin" (codec/sizes.py), or "compressai".
        same_machine: whether its streams decode only on the machine that made them.
    """

    name: str
    sha256: str
    parameters: int
    file_bytes: int
    rates: tuple[RateInfo, ...]
    training: dict[str, object]
    family: str
    same_machine: bool = False


@dataclass(frozen=True)
class AutoencoderInfo:
    """An autoencoder whose latents can be fitted to a picture.

    Attributes:
        name: by which a request asks for it. sha256: its identity, over its weights and the
            networks that a picture's networks start from, hex.
    """

    name: str
    sha256: str


class Codec(Protocol):
    """Compresses and decompresses pictures. Thread-safe; each call is one whole unit of work."""

    def models(self) -> tuple[ModelInfo, ...]:
        """The models that are loaded; the first compresses where a request names none."""

    def autoencoders(self) -> tuple[AutoencoderInfo, ...]:
        """The autoencoders of latent streams; the first is used where a request names none.

        The first call loads them, so it may take seconds.

        Raises:
            StoreError: one of them is damaged.
        """

    def compress(
        self,
        picture: Picture,
        rate: float | Target,
        tune: str = PSNR,
        model: str | None = None,
    ) -> Compressed:
        """A picture as a stream.

        Args:
            rate: 1–8, or container.LOSSLESS; or a target, and the stream is the one that meets it
                best, see target_search.py. A search leaves streams unchecked that are too large,
                and measures each PSNR where that is the target. A quality that no rate reaches is
                met without loss.
            tune: the ladder that the rate belongs to, one of container.TUNES.
            model: name of the model that compresses; None takes the first.

        Raises:
            ModelUnavailable: no model of that name is loaded.
            RateUnavailable: no weights for that rate. BadParameter: no rate or tune at all.
            TargetUnreachable: no rate of the tune meets the target.
            TooManyPixels: over the limit. MissingExtra: torch is not installed.
            CheckFailed: the fresh stream did not decode to what was encoded.
        """

    def decompress(self, data: bytes, view: View = WHOLE) -> Decompressed:
        """A stream, or a view of it, as a picture.

        Raises:
            BadStream: damaged. UnsupportedStream: needs a newer decoder.
            UnknownModel: its weights, or those of its autoencoder, are not in the store.
            TooManyPixels: over the limit.
            BadParameter: there is no such view of the picture.
        """

    @property
    def max_batch(self) -> int:
        """Pictures or streams to work on in one call: as many as make the device faster."""

    def compress_batch(
        self,
        pictures: Sequence[Picture],
        rate: float,
        tune: str = PSNR,
        model: str | None = None,
    ) -> list[Compressed | RankpressError]:
        """What `compress` returns or raises for each picture; the bytes are the same.

        Pictures of one padded size share the calls of the entropy networks.

        Raises:
            ModelUnavailable, RateUnavailable, BadParameter, MissingExtra: as `compress` does, for
                all of them.
        """

    def decompress_batch(self, streams: Sequence[bytes]) -> list[Decompressed | RankpressError]:
        """What `decompress` returns or raises for each stream; the pixels are the same.

        Streams of one rate and padded size share the calls of the entropy networks.
        """

    def picture_load(
        self,
        size: tuple[int, int] | None,
        rate: float | Target,
        tune: str = PSNR,
        model: str | None = None,
    ) -> Load:
        """How much work compressing a picture is, and what it may share a call with.

        Args:
            size: width and height; None where they are not known: it counts as the smallest
                picture and is worked on alone.

        Raises:
            TooManyPixels: over the limit. ModelUnavailable: no model of that name is loaded.
        """

    def preview_stream(self, data: bytes, view: View = WHOLE) -> StreamPreview:
        """What a stream's header tells of its picture and of the work to decompress a view of it.

        Raises:
            BadStream, UnsupportedStream, TooManyPixels, BadParameter: as `decompress`.
        """

    def stream_bits(self, data: bytes) -> StreamBits:
        """Where a stream spends its bits; its pixels are not decoded.

        Raises:
            BadStream, UnsupportedStream, UnknownModel, TooManyPixels: as `decompress`.
            BadParameter: the codec cannot tell, or the stream is a latent one.
        """

    def stored_at(self, rate: float, model: str | None = None) -> StoredModel:
        """The weights of a model at a rate of tune PSNR, merged afresh.

        Args:
            rate: 1–8. model: name of the model, None for the first.

        Raises:
            RateUnavailable: no weights for that rate.
            BadParameter: no rate at all, no such model, or the codec has no stored models.
        """

    def decoder_files(self) -> DecoderFiles:
        """The files that decoders in other programs need of the models, such as web pages.

        No file of a model whose streams decode on this machine only, or of a family that these
        decoders do not know (store/decoder_files.py).
        """

    def adapters(self) -> tuple[AdapterInfo, ...]:
        """Every rate adapter that is loaded."""

    def add_adapter(
        self, data: bytes, base_sha256: str, rate: int, tune: str = PSNR
    ) -> AdapterInfo:
        """Load a rate adapter: from now on, requests for its rate use it.

        It is checked, merged and kept in the folder first. Loading one again changes nothing.

        Args:
            data: a safetensors file, see codec/lowrank.py.
            base_sha256: SHA-256 of the base weights that it is for, hex.
            rate: a whole rate; rates between mix it with the next. tune: the rate's ladder.

        Raises:
            BadAdapter: it does not fit. TooManyBytes: larger than any that fits.
            BadParameter: no such base or rate, or the file is loaded for another rate already.
        """

    def remove_adapter(self, sha256: str) -> None:
        """Unload an adapter by its hex SHA-256; the one before it serves its rate again, if any.

        Requests that run keep it until they end. Afterwards its streams cannot be decoded.

        Raises:
            UnknownAdapter: it is not loaded. BadParameter: it belongs to the store.
        """

    def self_test(self) -> None:
        """Decode every model's golden stream: equal latents, and pixels equal but for rounding.

        Raises SelfTestFailed: this machine does not reproduce them.
        """
