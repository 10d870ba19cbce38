"""Engine: pictures <-> streams, with every model of the store resident.

A model is loaded once and never changes; a request names its rate. Pictures are worked through tile
by tile, so memory beyond the picture itself is bounded by a tile's window. Without torch the engine
still decompresses (numpy), and `compress` says what to install.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from service.codec import container
from service.codec.coder import Tables
from service.codec.entropy_model import EntropyModel
from service.codec.fixed_point import NUMPY, Numbers
from service.codec.latents import LatentCoder
from service.codec.lowrank import PARTS
from service.codec.tiles import Box
from service.engine.golden import decode_golden
from service.engine.pipeline import (
    Latents,
    LoadedModel,
    alpha_plane,
    decode_latents,
    encode,
    paint,
    painted_tiles,
)
from service.engine.synthesis_numpy import NumpySynthesis
from service.engine.target import QualityGoal, goal_of, search
from service.engine.types import Compressed, Decompressed, ModelInfo, RateInfo, Target, Timings
from service.engine.weights import Weights
from service.errors import (
    BadParameter,
    BadStream,
    MissingExtra,
    RateUnavailable,
    SelfTestFailed,
    StoreError,
    TooManyPixels,
    UnknownModel,
)
from service.picture import Picture, Region
from service.store import ENTROPY, StoredModel, load_store

if TYPE_CHECKING:
    import torch


class Engine:
    """Answers compress and decompress; implements engine.types.Codec."""

    def __init__(
        self,
        models: tuple[LoadedModel, ...],
        *,
        check: bool = True,
        max_pixels: int = 10**8,
        cache_bytes: int = 2**30,
    ) -> None:
        """Serve loaded models.

        Args:
            models: at least one; the first compresses.
            check: decode every fresh stream, compare its latents and measure its PSNR.
            max_pixels: larger pictures are refused, in both directions.
            cache_bytes: merged weights to keep besides the bases.
        """
        self._models, self._check, self._max_pixels = models, check, max_pixels
        self._weights = Weights(cache_bytes)

    def models(self) -> tuple[ModelInfo, ...]:
        """What is loaded."""
        return tuple(_model_info(m.stored) for m in self._models)

    def compress(self, picture: Picture, rate: float) -> Compressed:
        """A picture as a stream.

        Raises:
            RateUnavailable: no weights for that rate. BadParameter: no rate at all.
            TooManyPixels: over the limit. MissingExtra: torch is not installed.
            SelfTestFailed: the fresh stream did not decode to what was encoded.
        """
        rate16 = _rate16(rate, self._models[0].stored)
        self._check_pixels(picture.width, picture.height)
        return self._attempt(picture, rate16, lambda _: self._check)

    def compress_to(self, picture: Picture, target: Target) -> Compressed:
        """A picture as the stream that meets a target best, see target.py.

        Streams that are too big are dropped unchecked; a PSNR is measured whatever `check` says.

        Raises:
            TargetUnreachable: no rate meets it. Others as `compress`.
        """
        self._check_pixels(picture.width, picture.height)
        goal = goal_of(target, picture.width * picture.height)

        def needs_check(data: bytes) -> bool:
            if isinstance(goal, QualityGoal):
                return True
            return self._check and goal.fits(len(data))

        attempt = partial(self._attempt, picture, needs_check=needs_check, keep_fractions=False)
        return search(goal, self._models[0].stored, attempt)

    def _attempt(
        self,
        picture: Picture,
        rate16: int,
        needs_check: Callable[[bytes], bool],
        keep_fractions: bool = True,
    ) -> Compressed:
        """A picture compressed at a rate, and decoded again where `needs_check` of the stream."""
        keep = keep_fractions or rate16 % PARTS == 0
        start = perf_counter()
        with self._weights.lease(self._models[0], rate16, keep=keep) as model:
            live = perf_counter()
            data, latents = encode(model, picture, rate16)
            encoded = perf_counter()
            psnr_db = self._verify(model, data, picture, latents) if needs_check(data) else None
        timings = Timings(
            swap_s=live - start,
            net_s=encoded - live - latents.code_s,
            code_s=latents.code_s,
            check_s=perf_counter() - encoded,
        )
        bpp = 8 * len(data) / (picture.width * picture.height)
        return Compressed(data, picture.width, picture.height, rate16 / 16, bpp, psnr_db, timings)

    def decompress(self, data: bytes, region: Region | None = None) -> Decompressed:
        """A stream, or a region of it, as a picture.

        Raises:
            BadStream: damaged. UnsupportedStream: needs a newer decoder.
            UnknownModel: its weights are not in the store. TooManyPixels: over the limit.
            BadParameter: the region reaches outside the picture.
        """
        header = container.read_header(data)
        self._check_pixels(header.width, header.height)
        region = region or Region(0, 0, header.width, header.height)
        region.check_inside(header.width, header.height)
        stream = container.read_stream(data)
        base = self._base_of(header)
        start = perf_counter()
        want = Box(region.y, region.x, region.y + region.height, region.x + region.width)
        with self._weights.lease(base, header.rate16) as model:
            live = perf_counter()
            latents = decode_latents(model, stream, want)
            rgb = paint(model, latents, want, bool(header.flags & container.Flags.GREY))
        timings = Timings(
            swap_s=live - start,
            net_s=perf_counter() - live - latents.code_s,
            code_s=latents.code_s,
        )
        picture = Picture(
            rgb,
            alpha_plane(stream, want),
            bool(header.flags & container.Flags.GREY),
            stream.icc,
            stream.exif,
        )
        return Decompressed(picture, header.rate, base.stored.name, timings)

    def self_test(self) -> None:
        """Decode every model's golden stream: latents bit for bit, pixels within rounding.

        Raises:
            SelfTestFailed: this machine does not reproduce them.
        """
        for model in self._models:
            try:
                decode_golden(model)
            except BadStream as error:
                raise SelfTestFailed(
                    f"model {model.stored.name}: the golden stream does not decode: {error}"
                ) from error

    def _verify(
        self, model: LoadedModel, data: bytes, picture: Picture, expected: Latents
    ) -> float:
        """Decode a fresh stream, compare latents exactly, and return its PSNR in dB."""
        stream = container.read_stream(data)
        self._base_of(stream.header)
        everything = Box(0, 0, picture.height, picture.width)
        latents = decode_latents(model, stream, everything)
        if not np.array_equal(latents.y_hat, expected.y_hat):
            raise SelfTestFailed("the fresh stream decodes to other latents than were encoded")
        squared = 0
        for box, rgb in painted_tiles(model, latents, everything, picture.grey):
            difference = np.subtract(rgb, picture.rgb[box.slices], dtype=np.int16)
            squared += int(np.square(difference, dtype=np.int32).sum(dtype=np.int64))
        mse = squared / picture.rgb.size
        return 10 * math.log10(255**2 / mse) if mse else math.inf

    def _check_pixels(self, width: int, height: int) -> None:
        if max(width, height) > container.MAX_SIDE:
            raise TooManyPixels(
                f"the picture is {width}x{height}, a side has at most {container.MAX_SIDE} pixels"
            )
        if width * height > self._max_pixels:
            raise TooManyPixels(
                f"the picture has {width}x{height} = {width * height} pixels, "
                f"the limit is {self._max_pixels}"
            )

    def _base_of(self, header: container.Header) -> LoadedModel:
        """The model that made a stream."""
        known = []
        for base in self._models:
            if base.stored.offers(header.rate16):
                found = base.stored.identity_at(header.rate16)[:4]
                if found == header.model:
                    return base
                known.append(found.hex())
        raise UnknownModel(
            f"the stream needs weights {header.model.hex()} at rate {header.rate:g}; "
            f"at that rate the store holds {', '.join(sorted(known)) or 'none'}"
        )


def open_engine(
    *,
    store: Path | None = None,
    device: str = "auto",
    check: bool = True,
    max_pixels: int = 10**8,
    threads: int = 0,
    cache_bytes: int = 2**30,
) -> Engine:
    """Load a store and make every model of it resident.

    Args:
        store: folder of models; None takes the one that comes with Rankpress.
        device: "auto", "cpu" or "cuda".
        check: see Engine. max_pixels: see Engine.
        threads: CPU threads for the networks, 0 leaves torch's own choice.
        cache_bytes: see Engine.

    Raises:
        StoreError: the store is incomplete or damaged. BadParameter: no such device.
    """
    stored = load_store(store)
    if importlib.util.find_spec("torch") is None:
        if device not in ("auto", "cpu"):
            raise MissingExtra(f"device {device} needs pip install 'rankpress[server]'")
        models = tuple(_build_numpy(m) for m in stored)
    else:
        models = load_models(stored, device, None, threads)
    return Engine(models, check=check, max_pixels=max_pixels, cache_bytes=cache_bytes)


def load_models(
    stored: tuple[StoredModel, ...], device_name: str, dtype: torch.dtype | None, threads: int = 0
) -> tuple[LoadedModel, ...]:
    """Make models resident with torch.

    Args:
        stored: from the store. device_name: "auto", "cpu" or "cuda".
        dtype: working type of the transforms; None takes `best_dtype`.
        threads: CPU threads, 0 leaves torch's own choice.

    Raises:
        BadParameter: no such device.
    """
    import torch

    from service.engine.synthesis_torch import TorchTransforms, best_dtype, pick_device

    if threads:
        torch.set_num_threads(threads)
    try:
        device = pick_device(device_name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise BadParameter(f"device {device_name!r} cannot be used here") from error
    # Only true float32 products are exact: GPUs may round to TF32, and CPUs to bfloat16 when asked.
    exact = device.type == "cpu" and torch.get_float32_matmul_precision() == "highest"
    numbers = Numbers(torch, torch.float32 if exact else torch.float64, device)
    working = dtype or best_dtype(device)

    def build(model: StoredModel) -> LoadedModel:
        transforms = TorchTransforms(model, device, working)
        return LoadedModel(model, _coder(model, numbers), transforms, transforms, build)

    return tuple(build(model) for model in stored)


def _build_numpy(model: StoredModel) -> LoadedModel:
    return LoadedModel(model, _coder(model, NUMPY), NumpySynthesis(model), None, _build_numpy)


def _coder(model: StoredModel, numbers: Numbers) -> LatentCoder:
    if "tables" not in model.entropy:
        raise StoreError(f"model {model.name} has no tensor {ENTROPY}tables")
    entropy = EntropyModel(model.sizes, model.entropy, numbers)
    return LatentCoder(entropy, Tables(model.entropy["tables"]))


def _rate16(rate: float, model: StoredModel) -> int:
    """A rate in sixteenths. Raises BadParameter or RateUnavailable."""
    if not (math.isfinite(rate) and 1 <= rate <= 8):
        raise BadParameter(f"rate is {rate:g}, expected a number from 1 to 8")
    available = tuple(r.rate for r in model.rates)
    rounded = round(rate * container.RATE_UNIT)
    if not model.offers(rounded):
        listed = ", ".join(f"{r:g}" for r in available)
        held = f"{listed} and what lies between neighbours"
        raise RateUnavailable(f"rate {rate:g} is not in the store; it holds {held}", available)
    return rounded


def _model_info(m: StoredModel) -> ModelInfo:
    rates = tuple(
        RateInfo(
            r.rate, r.lmbda, r.kodak_bpp, r.kodak_psnr_db, r.digest.hex() or None, r.file_bytes
        )
        for r in m.rates
    )
    return ModelInfo(m.name, m.sha256, m.parameters, m.file_bytes, rates, dict(m.training))
