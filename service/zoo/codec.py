"""A CompressAI model as a codec, whose streams are decoded only on the machine that made them.

The model's entropy networks run in floating point, so another machine, library or number of threads
can compute other tables than the encoder did. Its range coder is not safe for bytes of unknown
origin: an empty stream ends the process. So streams are signed (zoo/signing.py), and a stream that
this machine did not make with the same software is refused before the range coder reads it.

A rate is an adapter (zoo/adapters.py); the base is rate 4. There are no rates between, no batches
and no tiles, and a region is cut out of the whole decoded picture, so pictures are limited to
MAX_PIXELS.
"""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any, Final, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from service.codec import alpha, container
from service.codec.container import PSNR
from service.codec.tiles import PATCH, Box, padded_pixels
from service.engine.requests import check_pixels, model_index, requested_pixels
from service.engine.target import Target, rate_text
from service.engine.types import (
    AdapterInfo,
    AutoencoderInfo,
    Compressed,
    DecoderFiles,
    Decompressed,
    Load,
    ModelInfo,
    RateInfo,
    StreamPreview,
    StreamShape,
    Timings,
)
from service.errors import (
    BadParameter,
    CheckFailed,
    RankpressError,
    RateUnavailable,
    SelfTestFailed,
    UnknownAdapter,
    UnknownModel,
)
from service.images.resize import shrink
from service.picture import U8, WHOLE, Picture, View, squared_error
from service.runtime.pipeline import alpha_plane, pixels_under
from service.transforms.fork_safety import check_process
from service.zoo.adapters import digest, merged, prepare_coder, read_factors
from service.zoo.signing import pack, sign, unpack, verified

BASE_RATE: Final = 4
MAX_PIXELS: Final = 1 << 22
CELL: Final = 64
"""Pictures are padded to multiples of this."""


@dataclass(frozen=True, eq=False)
class RateNetwork:
    """A network with the adapter of one rate merged, and the hash of its weights, 32 bytes."""

    network: nn.Module
    identity: bytes
    info: RateInfo


class ZooCodec:
    """A codec with one CompressAI model; implements `Codec` of engine.types."""

    def __init__(
        self,
        name: str,
        base: nn.Module,
        adapters: Mapping[int, bytes],
        key: bytes,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        """Prepare the network of every rate.

        Args:
            name: shown in /models. base: a CompressAI model; not changed.
            adapters: safetensors files by whole rate. key: see `machine_key`.
            max_pixels: larger pictures are refused; at most MAX_PIXELS.

        Raises:
            BadAdapter: a file does not fit the base.
        """
        self._name, self._key = name, key
        self._max_pixels = min(max_pixels, MAX_PIXELS)
        self._process = os.getpid()
        weights = digest(base)
        own = hashlib.sha256(weights).digest()
        network = prepare_coder(copy.deepcopy(base))
        self._rates = {float(BASE_RATE): RateNetwork(network, own, _rate_info(BASE_RATE))}
        for rate, data in sorted(adapters.items()):
            file_hash = hashlib.sha256(data)
            identity = hashlib.sha256(weights + file_hash.digest()).digest()
            info = _rate_info(rate, file_hash.hexdigest(), len(data))
            self._rates[rate] = RateNetwork(merged(base, read_factors(data)), identity, info)
        parameters = sum(p.numel() for p in base.parameters())
        self._model = ModelInfo(
            name,
            weights.hex(),
            parameters,
            file_bytes=4 * parameters,
            rates=tuple(entry.info for _, entry in sorted(self._rates.items())),
            training={"note": "CompressAI; see its documentation"},
            family="compressai",
            same_machine=True,
        )

    def autoencoders(self) -> tuple[AutoencoderInfo, ...]:
        """See `Codec`; there are none."""
        return ()

    def models(self) -> tuple[ModelInfo, ...]:
        """See `Codec`; the model is marked as usable on this machine only."""
        return (self._model,)

    @torch.inference_mode()
    def compress(
        self,
        picture: Picture,
        rate: float | Target,
        tune: str = PSNR,
        model: str | None = None,
    ) -> Compressed:
        """See `Codec`; a fresh stream is always decoded and measured.

        Raises:
            BadParameter: a target was given; there is no search over these models' rates.
        """
        model_index(model, [self._name])
        if isinstance(rate, Target):
            raise BadParameter("a CompressAI model takes a rate, not a size or a PSNR")
        entry = self._at(rate, tune)
        check_pixels(self._max_pixels, picture.width, picture.height, CELL)
        start = perf_counter()
        coded = entry.network.compress(padded_input(picture))  # type: ignore[operator]
        payload = pack(coded["strings"], coded["shape"])
        net_s = perf_counter() - start
        size = picture.width, picture.height
        flags = container.Flags.SAME_MACHINE | container.Flags.GREY * picture.grey
        rate16 = round(rate * container.RATE_UNIT)
        header = container.Header(entry.identity[:4], rate16, flags, *size)
        signed = sign(self._key, header, entry.identity, payload)
        packed = None if picture.alpha is None else alpha.pack(picture.alpha)
        data = container.write_stream(
            container.Stream(header, ((signed,),), packed, picture.icc, picture.exif)
        )
        start = perf_counter()
        try:
            back = self.decompress(data).picture.rgb
        except RankpressError as error:
            raise CheckFailed(f"the new stream does not decode: {error}") from error
        psnr_db = picture.psnr_db(squared_error(back, picture.rgb, picture.alpha))
        timings = Timings(net_s=net_s, check_s=perf_counter() - start)
        bpp = 8 * len(data) / (picture.width * picture.height)
        return Compressed(data, *size, rate, bpp, psnr_db, timings, self._name)

    @torch.inference_mode()
    def decompress(self, data: bytes, view: View = WHOLE) -> Decompressed:
        """See `Codec`.

        Raises:
            UnsupportedStream: the stream was made on another machine or by other software.
        """
        stream = container.read_stream(data, partial(self._check_header, view=view))
        header, entry = stream.header, self._rate_of(stream.header)
        start = perf_counter()
        payload = verified(self._key, header, entry.identity, stream.tiles[0][0], self._name)
        out = entry.network.decompress(*unpack(payload))  # type: ignore[operator]
        grey = bool(header.flags & container.Flags.GREY)
        rgb = output_pixels(out["x_hat"], header.height, header.width, grey)
        pixels = requested_pixels(header.width, header.height, view)
        cut = np.ascontiguousarray(rgb[pixels.slices])
        picture = Picture(cut, alpha_plane(stream, pixels), grey, stream.icc, stream.exif)
        timings = Timings(net_s=perf_counter() - start)
        return Decompressed(shrink(picture, view), header.rate, self._name, timings)

    def _check_header(self, header: container.Header, view: View) -> None:
        check_pixels(self._max_pixels, header.width, header.height, CELL)
        view.part(header.width, header.height)

    max_batch: Final = 1
    """There are no batches."""

    def compress_batch(
        self,
        pictures: Sequence[Picture],
        rate: float,
        tune: str = PSNR,
        model: str | None = None,
    ) -> list[Compressed | RankpressError]:
        """See `Codec`; pictures are worked on one after the other."""
        return [_outcome(self.compress, picture, rate, tune, model) for picture in pictures]

    def decompress_batch(self, streams: Sequence[bytes]) -> list[Decompressed | RankpressError]:
        """See `Codec`; streams are worked on one after the other."""
        return [_outcome(self.decompress, data) for data in streams]

    def picture_load(
        self,
        size: tuple[int, int] | None,
        rate: float | Target,
        tune: str = PSNR,
        model: str | None = None,
    ) -> Load:
        """See `Codec`; a picture counts with its sides rounded up to whole cells, and is alone."""
        del rate, tune  # every rate is ready: the order of requests does not matter
        model_index(model, [self._name])
        if size is None:
            return Load()
        check_pixels(self._max_pixels, *size, CELL)
        return Load(padded_pixels(*size, CELL))

    def preview_stream(self, data: bytes, view: View = WHOLE) -> StreamPreview:
        """See `Codec`; a region takes as long as the whole picture."""
        info = container.describe(data, partial(self._check_header, view=view))
        shape = StreamShape(info.width, info.height, info.has_alpha)
        return StreamPreview(shape, Load(padded_pixels(info.width, info.height, CELL)))

    def stream_bits(self, data: bytes) -> NoReturn:
        """Raises BadParameter: CompressAI's coders do not tell where bits are spent."""
        del data
        raise BadParameter("a CompressAI model does not tell where a stream spends its bits")

    def stored_at(self, rate: float, model: str | None = None) -> NoReturn:
        """Raises BadParameter: a CompressAI model is not one of the store."""
        del rate, model
        raise BadParameter("a CompressAI model has no weights in the store")

    def decoder_files(self) -> DecoderFiles:
        """See `Codec`; there are none, because streams decode on this machine only."""
        return DecoderFiles()

    def adapters(self) -> tuple[AdapterInfo, ...]:
        """See `Codec`."""
        model = self._model
        return tuple(
            AdapterInfo(
                r.sha256, model.sha256, self._name, int(r.rate), PSNR, r.file_bytes, True, True
            )
            for r in model.rates
            if r.sha256 is not None
        )

    def add_adapter(
        self, data: bytes, base_sha256: str, rate: int, tune: str = PSNR
    ) -> AdapterInfo:
        """Raises BadParameter: adapters of a CompressAI model are given when it is opened."""
        del data, base_sha256, rate, tune
        raise BadParameter("adapters of a CompressAI model are given when the server starts")

    def remove_adapter(self, sha256: str) -> None:
        """Raises UnknownAdapter: no adapter can be loaded while the server runs."""
        del sha256
        raise UnknownAdapter("adapters of a CompressAI model stay loaded while the server runs")

    def self_test(self) -> None:
        """Compress and decompress at every rate. Raises SelfTestFailed."""
        noise = np.random.default_rng(0).integers(0, 256, (CELL, CELL, 3), np.uint8)
        for rate in self._rates:
            try:
                self.compress(Picture(noise), rate)
            except CheckFailed as error:
                raise SelfTestFailed(f"model {self._name}, rate {rate}: {error}") from error

    def _at(self, rate: float, tune: str) -> RateNetwork:
        check_process(self._process)
        if tune != PSNR:
            raise BadParameter(f"model {self._name} has no tune {tune!r}, it has {PSNR}")
        if rate not in self._rates:
            held = tuple(r.rate for r in self._model.rates)
            listed = ", ".join(f"{r:g}" for r in held)
            raise RateUnavailable(
                f"model {self._name} has no rate {rate_text(rate)}, only {listed}", held
            )
        return self._rates[rate]

    def _rate_of(self, header: container.Header) -> RateNetwork:
        check_process(self._process)
        entry = self._rates.get(header.rate)
        flagged = header.flags & container.Flags.SAME_MACHINE
        if entry is None or not flagged or entry.identity[:4] != header.model:
            raise UnknownModel(
                f"the stream needs weights {header.model.hex()} at rate {header.rate:g}; "
                f"this server holds only {self._name}"
            )
        return entry


def _rate_info(rate: int, sha256: str | None = None, file_bytes: int = 0) -> RateInfo:
    return RateInfo(rate, PSNR, None, None, None, None, sha256, file_bytes)


def padded_input(picture: Picture) -> Tensor:
    """The picture as [1, 3, H, W] in [0, 1], padded to whole cells; see `pixels_under`."""
    cells = Box(0, 0, -(-picture.height // CELL), -(-picture.width // CELL))
    pixels = pixels_under(picture, cells.scaled(CELL // PATCH))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()[None].float() / 255


def output_pixels(x_hat: Tensor, height: int, width: int, grey: bool) -> U8:
    """Pixels [H, W, 3] of a network's output [1, 3, H', W'] in [0, 1]."""
    pixels = x_hat[0, :, :height, :width].mul(255).round().clamp(0, 255).to(torch.uint8)
    rgb: U8 = pixels.permute(1, 2, 0).contiguous().cpu().numpy()
    if grey:
        mean = (rgb.sum(-1, dtype=np.uint16, keepdims=True) + 1) // 3
        rgb = np.repeat(mean.astype(np.uint8), 3, -1)
    return rgb


def _outcome(work: Any, *arguments: Any) -> Any:
    try:
        return work(*arguments)
    except RankpressError as error:
        return error
