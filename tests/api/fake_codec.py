"""A codec for tests of the service: zlib over the pixels, with a gate to hold work up."""

from __future__ import annotations

import hashlib
import struct
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NoReturn

import numpy as np

from service.engine.admission_queue import RequestGroup
from service.engine.requests import model_index
from service.engine.target import LOSSLESS, Target
from service.engine.target_search import USUAL_ENCODES
from service.engine.types import (
    LEAST_WORK,
    AdapterInfo,
    AutoencoderInfo,
    Compressed,
    DecoderFiles,
    Decompressed,
    Load,
    ModelInfo,
    RateInfo,
    StreamBits,
    StreamPreview,
    StreamShape,
    Timings,
)
from service.errors import (
    BadAdapter,
    BadParameter,
    BadStream,
    RankpressError,
    RateUnavailable,
    SelfTestFailed,
    TargetUnreachable,
    TooManyPixels,
    UnknownAdapter,
    UnknownModel,
    UnsupportedStream,
)
from service.images.resize import shrink
from service.picture import WHOLE, Picture, View

MAGIC = b"fake"
TIMINGS = Timings(swap_s=0.001, net_s=0.002, code_s=0.003, graphics_s=0.005, check_s=0.004)


def _rate16(rate: float) -> int:
    """The rate in a header: 0 stands for none."""
    return 0 if rate == LOSSLESS else int(rate * 16)


def _outcome(work: Callable[[], Decompressed]) -> Decompressed | RankpressError:
    try:
        return work()
    except RankpressError as error:
        return error


class FakeCodec:
    """Attributes:
    gate: work waits in its thread until this is set; it is set at first.
    golden: what the self-test waits for.
    calls: units of work that have begun. tunes: that were asked for.
    fault: raised by every piece of work, if any.
    healthy: whether the self-test passes. alpha: of every sample that is decoded, None is opaque.
    exif: of every picture that is decoded.
    graphics_share: of every picture that is compressed; that of a lossless one is 1.
    batch: how many it likes to be given at once. batches: how many it was given at once.
    """

    def __init__(self, *, healthy: bool = True, max_pixels: int = 10_000, batch: int = 1) -> None:
        self.batch = batch
        self.batches: list[int] = []
        self.loaded: dict[str, AdapterInfo] = {}
        self.gate = threading.Event()
        self.gate.set()
        self.golden = threading.Event()
        self.golden.set()
        self.calls = 0
        self.tunes: list[str] = []
        self.fault: Exception | None = None
        self.healthy = healthy
        self.work_s = 0.0
        self.alpha: int | None = None
        self.exif: bytes | None = None
        self.graphics_share = 0.0
        self.max_pixels = max_pixels

    def autoencoders(self) -> tuple[AutoencoderInfo, ...]:
        return tuple(AutoencoderInfo(name, 32 * name[0].encode().hex()) for name in ("kl", "own"))

    def models(self) -> tuple[ModelInfo, ...]:
        rates = (
            RateInfo(2.0, "ms-ssim", 4.5, 0.2, 27.0, 0.97, "ef" * 32, 98),
            RateInfo(4.0, "psnr", 0.013, 0.35, 32.5, 0.98),
            RateInfo(2.0, "psnr", 0.0035, None, None, None, "cd" * 32, 99),
        )
        return (ModelInfo("fake", "ab" * 32, 10, 40, rates, {"steps": 3}, "conv"),)

    def compress(
        self,
        picture: Picture,
        rate: float | Target,
        tune: str = "psnr",
        model: str | None = None,
    ) -> Compressed:
        name = self._name(model)
        if isinstance(rate, Target):
            return self._compress_to(picture, rate, tune, model)
        self._work()
        self.tunes.append(tune)
        if rate not in (2.0, 4.0, LOSSLESS):
            raise RateUnavailable(f"rate is {rate:g}, expected one of 2, 4", (2.0, 4.0))
        head = struct.pack("<4sBII", MAGIC, _rate16(rate), picture.width, picture.height)
        data = head + zlib.compress(picture.rgb.tobytes())
        bpp = 8 * len(data) / (picture.width * picture.height)
        share = 1.0 if rate == LOSSLESS else self.graphics_share
        return Compressed(
            data, picture.width, picture.height, rate, bpp, float("inf"), TIMINGS, name,
            tune=tune, graphics_share=share,
        )  # fmt: skip

    def _compress_to(
        self, picture: Picture, target: Target, tune: str, model: str | None
    ) -> Compressed:
        made = self.compress(picture, 2.0, tune, model)
        if target.max_bytes is not None and len(made.data) > target.max_bytes:
            found = len(made.data)
            raise TargetUnreachable(f"{found} bytes at least", found, target.max_bytes)
        return replace(made, encodes=5)

    def decompress(self, data: bytes, view: View = WHOLE) -> Decompressed:
        self._work()
        if data[:4] == b"newr":
            raise UnsupportedStream("format version is 9, expected at most 1")
        if data[:4] == b"othr":
            raise UnknownModel("made with model 01020304, which is not in the store")
        if len(data) < 13 or data[:4] != MAGIC:
            raise BadStream("the first four bytes are not those of a stream")
        _, rate16, width, height = struct.unpack("<4sBII", data[:13])
        if width * height > self.max_pixels:
            raise TooManyPixels(f"{width}x{height} pixels, expected at most {self.max_pixels}")
        inflater = zlib.decompressobj()
        try:
            pixels = inflater.decompress(data[13:])
        except zlib.error:
            raise BadStream("the pixels are damaged") from None
        if not (inflater.eof or view.partial):
            raise BadStream("the pixels are cut")
        complete = len(pixels) / (3 * width * height)
        pixels = pixels.ljust(3 * width * height, b"\0")
        rgb = np.frombuffer(pixels, np.uint8).reshape(height, width, 3)
        part = view.part(width, height)
        rgb = rgb[part.y : part.y + part.height, part.x : part.x + part.width]
        alpha = None if self.alpha is None else np.full(rgb.shape[:2], self.alpha, np.uint8)
        picture = Picture(np.ascontiguousarray(rgb), alpha, exif=self.exif)
        rate = rate16 / 16 if rate16 else LOSSLESS
        return Decompressed(shrink(picture, view), rate, "fake", TIMINGS, complete)

    @property
    def max_batch(self) -> int:
        return self.batch

    def compress_batch(
        self,
        pictures: Sequence[Picture],
        rate: float,
        tune: str = "psnr",
        model: str | None = None,
    ) -> list[Compressed | RankpressError]:
        self.batches.append(len(pictures))
        return [self.compress(picture, rate, tune, model) for picture in pictures]

    def decompress_batch(self, streams: Sequence[bytes]) -> list[Decompressed | RankpressError]:
        self.batches.append(len(streams))
        return [_outcome(lambda data=data: self.decompress(data)) for data in streams]  # type: ignore[misc]

    def picture_load(
        self,
        size: tuple[int, int] | None,
        rate: float | Target,
        tune: str = "psnr",
        model: str | None = None,
    ) -> Load:
        name = self._name(model)
        pixels = LEAST_WORK if size is None else size[0] * size[1]
        if isinstance(rate, Target):
            return Load(USUAL_ENCODES * pixels)
        return Load(pixels, RequestGroup((name, rate, tune), size and ("compress", size)))

    def preview_stream(self, data: bytes, view: View = WHOLE) -> StreamPreview:
        shape = self._shape(data)
        if shape.width * shape.height > self.max_pixels:
            raise TooManyPixels(f"{shape.width}x{shape.height}, at most {self.max_pixels} pixels")
        group = RequestGroup(data[4:5], ("decompress", data[5:13]) if view == WHOLE else None)
        region = view.region
        pixels = region.width * region.height if region else len(data)
        return StreamPreview(shape, Load(pixels, group))

    def _shape(self, data: bytes) -> StreamShape:
        if data[:4] in (b"newr", b"othr"):  # what decoding them raises is of interest
            return StreamShape(1, 1, False)
        if len(data) < 13 or data[:4] != MAGIC:
            raise BadStream("the first four bytes are not those of a stream")
        return StreamShape(*struct.unpack("<II", data[5:13]), self.alpha is not None)

    def stream_bits(self, data: bytes) -> StreamBits:
        shown = self.decompress(data)
        width, height = shown.picture.width, shown.picture.height
        bits = np.ones((-(-height // 16), -(-width // 16)), np.float32)
        return StreamBits(width, height, shown.rate, bits, bits > 1, len(data))

    def stored_at(self, rate: float, model: str | None = None) -> NoReturn:
        raise BadParameter(f"model {model} has no weights at rate {rate:g}")

    def decoder_files(self) -> DecoderFiles:
        files = {"ab" * 32 + ".safetensors": b"weights" * 100_000, "cd" * 32 + ".rku": b"update"}
        return DecoderFiles(b'{"schema":1,"models":[{"name":"fake"}]}', files)

    def adapters(self) -> tuple[AdapterInfo, ...]:
        return tuple(self.loaded.values())

    def add_adapter(
        self, data: bytes, base_sha256: str, rate: int, tune: str = "psnr"
    ) -> AdapterInfo:
        self._work()
        if not data.startswith(b"good"):
            raise BadAdapter("the adapter does not fit")
        sha256 = hashlib.sha256(data).hexdigest()
        self.loaded[sha256] = AdapterInfo(
            sha256, base_sha256, "fake", rate, tune, len(data), True, False
        )
        return self.loaded[sha256]

    def remove_adapter(self, sha256: str) -> None:
        if self.loaded.pop(sha256, None) is None:
            raise UnknownAdapter(f"no adapter {sha256} is loaded")

    def self_test(self) -> None:
        assert self.golden.wait(30)
        if not self.healthy:
            raise SelfTestFailed("symbol 0 is 1, expected 2")

    def _name(self, model: str | None) -> str:
        names = [info.name for info in self.models()]
        return names[model_index(model, names)]

    def _work(self) -> None:
        self.calls += 1
        assert self.gate.wait(30)
        time.sleep(self.work_s)
        if self.fault is not None:
            raise self.fault
