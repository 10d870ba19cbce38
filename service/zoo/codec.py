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
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from service.codec import alpha, container
from service.codec.container import PSNR
from service.codec.tiles import padded_pixels
from service.engine.requests import check_pixels
from service.engine.target import Target
from service.engine.types import (
    AdapterInfo,
    Compressed,
    Decompressed,
    Load,
    ModelInfo,
    RateInfo,
    StreamPreview,
    StreamShape,
    Timings,
)
from service.errors import (
    BadAdapter,
    BadParameter,
    CheckFailed,
    RankpressError,
    RateUnavailable,
    SelfTestFailed,
    StoreError,
    UnknownAdapter,
    UnknownModel,
)
from service.picture import U8, Picture, Region, squared_error
from service.runtime.fork_safety import check_process
from service.zoo.adapters import digest, merged, prepare_coder, pretrained
from service.zoo.signing import machine_key, pack, sign, unpack, verified

BASE_RATE: Final = 4
MAX_PIXELS: Final = 1 << 22
CELL: Final = 64
"""Pictures are padded to multiples of this."""


@dataclass(frozen=True, eq=False)
class RateNetwork:
    """A network at one rate.

    Attributes:
        network: the model, with the rate's adapter merged.
        identity: hash of the weights, 32 bytes.
        sha256: of the adapter's file; None at the base's rate.
        file_bytes: size of the adapter's file.
    """

    network: nn.Module
    identity: bytes
    sha256: str | None = None
    file_bytes: int = 0


class ZooCodec:
    """A codec with one CompressAI model; implements engine.types.Codec."""

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
            name: shown in /models.
            base: a CompressAI model; not changed.
            adapters: safetensors files by whole rate.
            key: of this machine, see `machine_key`.
            max_pixels: larger pictures are refused; at most MAX_PIXELS.

        Raises:
            BadAdapter: a file does not fit the base.
        """
        self._name, self._key = name, key
        self._max_pixels = min(max_pixels, MAX_PIXELS)
        self._process = os.getpid()
        weights = digest(base)
        self._base_sha256 = weights.hex()
        self._parameters = sum(p.numel() for p in base.parameters())
        own = hashlib.sha256(weights).digest()
        self._rates = {BASE_RATE: RateNetwork(prepare_coder(copy.deepcopy(base)), own)}
        for rate, data in adapters.items():
            file_hash = hashlib.sha256(data)
            identity = hashlib.sha256(weights + file_hash.digest()).digest()
            network = merged(base, _factors(data))
            self._rates[rate] = RateNetwork(network, identity, file_hash.hexdigest(), len(data))

    def models(self) -> tuple[ModelInfo, ...]:
        """Return the one model, marked as usable on this machine only."""
        rates = tuple(
            RateInfo(rate, PSNR, None, None, None, None, entry.sha256, entry.file_bytes)
            for rate, entry in sorted(self._rates.items())
        )
        size = 4 * self._parameters
        training = {"note": "CompressAI; see its documentation"}
        return (
            ModelInfo(
                self._name, self._base_sha256, self._parameters, size, rates, dict(training), True
            ),
        )

    @torch.inference_mode()
    def compress(self, picture: Picture, rate: float | Target, tune: str = PSNR) -> Compressed:
        """Compress a picture; the stream is decoded and measured before it is returned.

        Raises:
            RateUnavailable: there is no such rate or tune.
            BadParameter: a target was given; there is no search over these models' rates.
            TooManyPixels: the picture is over the limit.
            CheckFailed: the new stream does not decode.
        """
        if isinstance(rate, Target):
            raise BadParameter("a CompressAI model takes a rate, not a size or a PSNR")
        entry = self._at(rate, tune)
        check_pixels(self._max_pixels, picture.width, picture.height, CELL)
        start = perf_counter()
        rgb = picture.rgb
        if picture.alpha is not None:
            rgb = alpha.fill_hidden(rgb, picture.alpha)
        coded = entry.network.compress(padded_input(rgb))  # type: ignore[operator]
        net_s = perf_counter() - start
        flags = container.Flags.SAME_MACHINE | container.Flags.GREY * picture.grey
        header = container.Header(
            entry.identity[:4], round(rate * container.RATE_UNIT), flags, picture.width,
            picture.height,
        )  # fmt: skip
        payload = pack(coded["strings"], coded["shape"])
        packed = None if picture.alpha is None else alpha.pack(picture.alpha)
        signed = sign(self._key, header, entry.identity, payload)
        data = container.write_stream(
            container.Stream(header, (signed,), packed, picture.icc, picture.exif)
        )
        start = perf_counter()
        try:
            back = self.decompress(data).picture.rgb
        except RankpressError as error:
            raise CheckFailed(f"the new stream does not decode: {error}") from error
        squared = squared_error(back, picture.rgb, picture.alpha)
        psnr_db = picture.psnr_db(squared)
        timings = Timings(net_s=net_s, check_s=perf_counter() - start)
        bpp = 8 * len(data) / (picture.width * picture.height)
        return Compressed(data, picture.width, picture.height, rate, bpp, psnr_db, timings)

    @torch.inference_mode()
    def decompress(self, data: bytes, region: Region | None = None) -> Decompressed:
        """Decompress a stream that this codec made on this machine, or a region of its picture.

        Raises:
            BadStream: the stream is damaged.
            UnknownModel: it was made by another model or rate.
            UnsupportedStream: it was made on another machine or by other software.
            TooManyPixels: the picture is over the limit.
            BadParameter: the region is not inside the picture.
        """
        header = container.read_header(data)
        check_pixels(self._max_pixels, header.width, header.height, CELL)
        region = region or Region(0, 0, header.width, header.height)
        region.check_inside(header.width, header.height)
        entry = self._rate_of(header)
        stream = container.read_stream(data)
        start = perf_counter()
        payload = verified(self._key, header, entry.identity, stream.tiles[0], self._name)
        strings, shape = unpack(payload)
        out = entry.network.decompress(strings, shape)  # type: ignore[operator]
        rgb = output_pixels(out["x_hat"], header.height, header.width, header.flags)
        rows = slice(region.y, region.y + region.height)
        columns = slice(region.x, region.x + region.width)
        plane = None
        if stream.alpha is not None:
            plane = alpha.unpack(stream.alpha, header.height, header.width)[rows, columns]
        grey = bool(header.flags & container.Flags.GREY)
        cut = np.ascontiguousarray(rgb[rows, columns])
        picture = Picture(cut, plane, grey, stream.icc, stream.exif)
        timings = Timings(net_s=perf_counter() - start)
        return Decompressed(picture, header.rate, self._name, timings)

    @property
    def max_batch(self) -> int:
        """1, because there are no batches."""
        return 1

    def compress_batch(
        self, pictures: Sequence[Picture], rate: float, tune: str = PSNR
    ) -> list[Compressed | RankpressError]:
        """Compress pictures one after the other; errors take the place of their results."""
        return [_outcome(self.compress, picture, rate, tune) for picture in pictures]

    def decompress_batch(self, streams: Sequence[bytes]) -> list[Decompressed | RankpressError]:
        """Decompress streams one after the other; errors take the place of their results."""
        return [_outcome(self.decompress, data) for data in streams]

    def picture_load(
        self, size: tuple[int, int] | None, rate: float | Target, tune: str = PSNR
    ) -> Load:
        """Pixels of a picture with its sides rounded up to whole cells, worked on alone.

        Raises:
            TooManyPixels: the picture is over the limit.
        """
        del rate, tune  # every rate is ready: the order of requests does not matter
        if size is None:
            return Load()
        check_pixels(self._max_pixels, *size, CELL)
        return Load(padded_pixels(*size, CELL))

    def preview_stream(self, data: bytes, region: Region | None = None) -> StreamPreview:
        """What a stream's header tells; decompressing a region takes as long as the whole.

        Raises:
            BadStream, UnsupportedStream: it cannot be read. TooManyPixels: over the limit.
        """
        del region
        info = container.describe(
            data, lambda header: check_pixels(self._max_pixels, header.width, header.height, CELL)
        )
        shape = StreamShape(info.width, info.height, info.has_alpha)
        return StreamPreview(shape, Load(padded_pixels(info.width, info.height, CELL)))

    def adapters(self) -> tuple[AdapterInfo, ...]:
        """Return the adapters that the codec was opened with."""
        return tuple(
            AdapterInfo(
                each.sha256, self._base_sha256, self._name, rate, PSNR, each.file_bytes, True, True
            )
            for rate, each in sorted(self._rates.items())
            if each.sha256 is not None
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
            held = tuple(sorted(float(r) for r in self._rates))
            listed = ", ".join(f"{r:g}" for r in held)
            raise RateUnavailable(f"model {self._name} has no rate {rate:g}, only {listed}", held)
        return self._rates[int(rate)]

    def _rate_of(self, header: container.Header) -> RateNetwork:
        check_process(self._process)
        entry = self._rates.get(header.rate16 // container.RATE_UNIT)
        exact = header.rate16 % container.RATE_UNIT == 0
        flagged = header.flags & container.Flags.SAME_MACHINE
        if entry is None or not exact or not flagged or entry.identity[:4] != header.model:
            raise UnknownModel(
                f"the stream needs weights {header.model.hex()} at rate {header.rate:g}; "
                f"this server holds only {self._name}"
            )
        return entry


def open_zoo(
    chosen: str, adapters: Path | None, key_file: Path, max_pixels: int, threads: int = 0
) -> ZooCodec:
    """Open a CompressAI model with its published weights, and adapters from a folder.

    Args:
        chosen: name and quality of the model, "mbt2018-mean-4".
        adapters: folder of files `<rate>.safetensors`; None for no adapters.
        key_file: see `machine_key`.
        max_pixels: see ZooCodec.
        threads: of torch; 0 leaves torch's own choice.

    Raises:
        BadParameter: CompressAI has no such model.
        MissingExtra: CompressAI is not installed.
        StoreError: a file in the folder has another name, or does not fit the model.
    """
    name, _, quality = chosen.rpartition("-")
    if not name or not quality.isdigit():
        raise BadParameter(f"zoo is {chosen!r}, expected a name and quality: mbt2018-mean-4")
    if threads:
        torch.set_num_threads(threads)
    network = pretrained(name, int(quality))
    files = {}
    for path in [] if adapters is None else sorted(adapters.glob("*.safetensors")):
        if path.stem not in set("1235678"):
            raise StoreError(f"{path} is not named after a rate from 1 to 8 other than {BASE_RATE}")
        files[int(path.stem)] = path.read_bytes()
    try:
        return ZooCodec(chosen, network, files, machine_key(key_file), max_pixels)
    except BadAdapter as error:
        raise StoreError(f"an adapter in {adapters} does not fit {chosen}: {error}") from error


def _factors(data: bytes) -> dict[str, Tensor]:
    try:
        return load(data)
    except (SafetensorError, KeyError, ValueError) as error:
        raise BadAdapter(f"not a safetensors file that can be read: {error}") from error


def padded_input(rgb: U8) -> Tensor:
    """Pixels as [1, 3, H, W] in [0, 1], padded to whole cells with the edge."""
    pad = [(0, -side % CELL) for side in rgb.shape[:2]]
    padded = np.pad(rgb, (*pad, (0, 0)), mode="edge")
    return torch.from_numpy(padded).permute(2, 0, 1).contiguous()[None].float() / 255


def output_pixels(x_hat: Tensor, height: int, width: int, flags: int) -> U8:
    """Pixels [H, W, 3] of a network's output [1, 3, H', W'] in [0, 1]; grey if the flags say so."""
    pixels = x_hat[0, :, :height, :width].mul(255).round().clamp(0, 255).to(torch.uint8)
    rgb: U8 = pixels.permute(1, 2, 0).contiguous().cpu().numpy()
    if flags & container.Flags.GREY:
        mean = (rgb.sum(-1, dtype=np.uint16, keepdims=True) + 1) // 3
        rgb = np.repeat(mean.astype(np.uint8), 3, -1)
    return rgb


def _outcome(work: Any, *arguments: Any) -> Any:
    try:
        return work(*arguments)
    except RankpressError as error:
        return error
