"""A CompressAI model as a codec: its own entropy model, on this machine only.

Its entropy networks run in floating point, so another machine, library or number of threads may see
other tables than the encoder did; and its range coder is not made for bytes from strangers (an
empty stream ends the process). So a stream is signed (zoo_signing.py), and bytes that this machine
did not make, or made otherwise, are refused before the range coder sees them.

A rate is an adapter (zoo/adapters.py); the base is rate 4. There are no rates between, no batches,
no tiles and no regions decoded alone: pictures are limited to MAX_PIXELS.
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
from service.engine.line import Group
from service.engine.requests import check_pixels, stream_shape
from service.engine.types import (
    AdapterInfo,
    Compressed,
    Decompressed,
    ModelInfo,
    RateInfo,
    StreamShape,
    Target,
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
from service.runtime.forks import check_process
from service.zoo.adapters import digest, merged, pretrained, ready
from service.zoo.signing import machine_key, pack, sign, unpack, verified

BASE_RATE: Final = 4
MAX_PIXELS: Final = 1 << 22
CELL: Final = 64
"""Pictures are padded to multiples of this."""


@dataclass(frozen=True, eq=False)
class Made:
    """A network at one rate, its 32-byte identity, and its adapter's hash and bytes if any."""

    network: nn.Module
    identity: bytes
    sha256: str | None = None
    file_bytes: int = 0


class ZooCodec:
    """Answers compress and decompress; implements engine.types.Codec."""

    def __init__(
        self,
        name: str,
        base: nn.Module,
        adapters: Mapping[int, bytes],
        key: bytes,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        """Make every rate ready.

        Args:
            name: shown in /models. base: a CompressAI model, not changed.
            adapters: safetensors files by whole rate. key: this machine's, see `machine_key`.
            max_pixels: larger pictures are refused; at most MAX_PIXELS.

        Raises:
            BadAdapter: a file that does not fit the base.
        """
        self._name, self._key = name, key
        self._max_pixels = min(max_pixels, MAX_PIXELS)
        self._process = os.getpid()
        weights = digest(base)
        self._base_sha256 = weights.hex()
        self._parameters = sum(p.numel() for p in base.parameters())
        own = hashlib.sha256(weights).digest()
        self._made = {BASE_RATE: Made(ready(copy.deepcopy(base)), own)}
        for rate, data in adapters.items():
            found = hashlib.sha256(data)
            identity = hashlib.sha256(weights + found.digest()).digest()
            network = merged(base, _factors(data))
            self._made[rate] = Made(network, identity, found.hexdigest(), len(data))

    def models(self) -> tuple[ModelInfo, ...]:
        """What is loaded: one model, on this machine only."""
        rates = tuple(
            RateInfo(rate, PSNR, None, None, None, None, made.sha256, made.file_bytes)
            for rate, made in sorted(self._made.items())
        )
        size = 4 * self._parameters
        training = {"note": "CompressAI; see its documentation"}
        return (
            ModelInfo(
                self._name, self._base_sha256, self._parameters, size, rates, dict(training), True
            ),
        )

    @torch.inference_mode()
    def compress(self, picture: Picture, rate: float, tune: str = PSNR) -> Compressed:
        """A picture as a stream, which is decoded and measured before it is returned.

        Raises:
            RateUnavailable, BadParameter: no such rate or tune. TooManyPixels: over the limit.
            CheckFailed: the fresh stream did not decode.
        """
        made = self._at(rate, tune)
        check_pixels(self._max_pixels, picture.width, picture.height, CELL)
        start = perf_counter()
        rgb = picture.rgb
        if picture.alpha is not None:
            rgb = alpha.fill_hidden(rgb, picture.alpha)
        coded = made.network.compress(_input(rgb))  # type: ignore[operator]
        net_s = perf_counter() - start
        flags = container.Flags.SAME_MACHINE | container.Flags.GREY * picture.grey
        header = container.Header(
            made.identity[:4], round(rate * container.RATE_UNIT), flags, picture.width,
            picture.height,
        )  # fmt: skip
        payload = pack(coded["strings"], coded["shape"])
        packed = None if picture.alpha is None else alpha.pack(picture.alpha)
        signed = sign(self._key, header, made.identity, payload)
        data = container.write_stream(
            container.Stream(header, (signed,), packed, picture.icc, picture.exif)
        )
        start = perf_counter()
        try:
            back = self.decompress(data).picture.rgb
        except RankpressError as error:
            raise CheckFailed(f"the fresh stream does not decode: {error}") from error
        squared = squared_error(back, picture.rgb, picture.alpha)
        psnr_db = picture.psnr_db(squared)
        timings = Timings(net_s=net_s, check_s=perf_counter() - start)
        bpp = 8 * len(data) / (picture.width * picture.height)
        return Compressed(data, picture.width, picture.height, rate, bpp, psnr_db, timings)

    def compress_to(self, picture: Picture, target: Target, tune: str = PSNR) -> Compressed:
        """Raises BadParameter: there is no search over a CompressAI model's rates."""
        del picture, target, tune
        raise BadParameter("a CompressAI model is asked for a rate, not for a size or a PSNR")

    @torch.inference_mode()
    def decompress(self, data: bytes, region: Region | None = None) -> Decompressed:
        """A stream that this codec made on this machine, or a region of it, as a picture.

        Raises:
            BadStream: damaged, or not made here. UnknownModel: made by another model or rate.
            UnsupportedStream: made here by other software. TooManyPixels: over the limit.
            BadParameter: the region reaches outside the picture.
        """
        header = container.read_header(data)
        check_pixels(self._max_pixels, header.width, header.height, CELL)
        region = region or Region(0, 0, header.width, header.height)
        region.check_inside(header.width, header.height)
        made = self._made_by(header)
        stream = container.read_stream(data)
        start = perf_counter()
        payload = verified(self._key, header, made.identity, stream.tiles[0], self._name)
        strings, shape = unpack(payload)
        out = made.network.decompress(strings, shape)  # type: ignore[operator]
        rgb = _pixels(out["x_hat"], header.height, header.width, header.flags)
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
        """One: no batches."""
        return 1

    def compress_batch(
        self, pictures: Sequence[Picture], rate: float, tune: str = PSNR
    ) -> list[Compressed | RankpressError]:
        """One after the other."""
        return [_outcome(self.compress, picture, rate, tune) for picture in pictures]

    def decompress_batch(self, streams: Sequence[bytes]) -> list[Decompressed | RankpressError]:
        """One after the other."""
        return [_outcome(self.decompress, data) for data in streams]

    def picture_group(
        self, size: tuple[int, int] | None, rate: float, tune: str = PSNR
    ) -> Group | None:
        """None: every rate is ready, order does not matter."""
        del size, rate, tune
        return None

    def stream_group(self, data: bytes, whole: bool) -> Group | None:
        """None, as `picture_group`."""
        del data, whole
        return None

    def stream_shape(self, data: bytes) -> StreamShape:
        """What a stream's header says of its picture. Raises BadStream, UnsupportedStream."""
        return stream_shape(data)

    def picture_work(self, width: int, height: int) -> int:
        """Pixels of a picture with its sides rounded up to whole cells.

        Raises:
            TooManyPixels: over the limit.
        """
        check_pixels(self._max_pixels, width, height, CELL)
        return padded_pixels(width, height, CELL)

    def stream_work(self, data: bytes, region: Region | None = None) -> int:
        """As `picture_work`; a region takes as long as the whole. Raises BadStream too."""
        del region
        header = container.read_header(data)
        return self.picture_work(header.width, header.height)

    def adapters(self) -> tuple[AdapterInfo, ...]:
        """Those that it was opened with."""
        return tuple(
            AdapterInfo(
                made.sha256, self._base_sha256, self._name, rate, PSNR, made.file_bytes, True, True
            )
            for rate, made in sorted(self._made.items())
            if made.sha256 is not None
        )

    def add_adapter(
        self, data: bytes, base_sha256: str, rate: int, tune: str = PSNR
    ) -> AdapterInfo:
        """Raises BadParameter: adapters of a CompressAI model are given when it is opened."""
        del data, base_sha256, rate, tune
        raise BadParameter("adapters of a CompressAI model are given when the server starts")

    def remove_adapter(self, sha256: str) -> None:
        """Raises UnknownAdapter: none was loaded while it ran."""
        del sha256
        raise UnknownAdapter("adapters of a CompressAI model stay while the server runs")

    def self_test(self) -> None:
        """Compress and decompress at every rate. Raises SelfTestFailed."""
        noise = np.random.default_rng(0).integers(0, 256, (CELL, CELL, 3), np.uint8)
        for rate in self._made:
            try:
                self.compress(Picture(noise), rate)
            except CheckFailed as error:
                raise SelfTestFailed(f"model {self._name}, rate {rate}: {error}") from error

    def _at(self, rate: float, tune: str) -> Made:
        check_process(self._process)
        if tune != PSNR:
            raise BadParameter(f"model {self._name} has no tune {tune!r}, it has {PSNR}")
        if rate not in self._made:
            held = tuple(sorted(float(r) for r in self._made))
            listed = ", ".join(f"{r:g}" for r in held)
            raise RateUnavailable(f"rate {rate:g} is not there; there are {listed}", held)
        return self._made[int(rate)]

    def _made_by(self, header: container.Header) -> Made:
        check_process(self._process)
        made = self._made.get(header.rate16 // container.RATE_UNIT)
        exact = header.rate16 % container.RATE_UNIT == 0
        flagged = header.flags & container.Flags.SAME_MACHINE
        if made is None or not exact or not flagged or made.identity[:4] != header.model:
            raise UnknownModel(
                f"the stream needs weights {header.model.hex()} at rate {header.rate:g}; "
                f"this server holds only {self._name}"
            )
        return made


def open_zoo(
    chosen: str, adapters: Path | None, key_file: Path, max_pixels: int, threads: int = 0
) -> ZooCodec:
    """A CompressAI model with its published weights, and adapters from a folder.

    Args:
        chosen: its name and quality, "mbt2018-mean-4".
        adapters: files `<rate>.safetensors`. key_file: see `machine_key`.
        max_pixels: see ZooCodec. threads: of torch, 0 leaves its own choice.

    Raises:
        BadParameter: no such model. MissingExtra: CompressAI is not installed.
        StoreError: a file that does not belong in the folder, or does not fit.
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
            raise StoreError(f"{path} is not named by a rate from 1 to 8 other than {BASE_RATE}")
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


def _input(rgb: U8) -> Tensor:
    """[1, 3, H, W] in [0, 1], the edge repeated to whole cells."""
    pad = [(0, -side % CELL) for side in rgb.shape[:2]]
    padded = np.pad(rgb, (*pad, (0, 0)), mode="edge")
    return torch.from_numpy(padded).permute(2, 0, 1).contiguous()[None].float() / 255


def _pixels(x_hat: Tensor, height: int, width: int, flags: int) -> U8:
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
