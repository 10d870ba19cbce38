"""Engine: pictures <-> streams, with every model of the store resident.

A model is loaded once and never changes; a request names its rate. Rate adapters can be loaded and
unloaded while it runs (shelf.py): a request sees what it found when it began. Pictures are worked
through tile by tile, so memory beyond the picture itself is bounded by a tile's window. Without
torch the engine still decompresses (light.py), and `compress` says what to install.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter

from service.adapt.plan import Plan as AdaptPlan
from service.adapt.plan import plan_of
from service.adapt.types import Adaptation
from service.codec import container
from service.codec.container import PSNR
from service.codec.lowrank import PARTS
from service.codec.tiles import Box, latent_box, latents_under, work_pixels
from service.engine.golden import decode_golden
from service.engine.line import Group
from service.engine.requests import (
    Order,
    batch_of,
    check_pixels,
    check_tune,
    rate16_of,
    stream_shape,
)
from service.engine.shelf import Shelves
from service.engine.target import QualityGoal, goal_of, search
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
from service.engine.weights import Weights
from service.errors import (
    BadParameter,
    BadStream,
    CheckFailed,
    MissingExtra,
    RankpressError,
    SelfTestFailed,
    TooManyPixels,
    UnknownModel,
    UnsupportedStream,
)
from service.picture import Picture, Region
from service.runtime.check import verify
from service.runtime.forks import check_process
from service.runtime.loading import load_models as load_models  # the engine's users want both
from service.runtime.pipeline import LoadedModel, decode_all, encode_all, paint, with_update
from service.store.adapters import AdapterFiles, StoredAdapter
from service.store.model import StoredModel


class Engine:
    """Answers compress and decompress; implements engine.types.Codec."""

    def __init__(
        self,
        models: tuple[LoadedModel, ...],
        *,
        check: bool = True,
        max_pixels: int = 10**8,
        cache_bytes: int = 2**30,
        max_batch: int = 1,
        adapters: Path | None = None,
    ) -> None:
        """Serve loaded models.

        Args:
            models: at least one; the first compresses.
            check: decode every fresh stream, compare its latents and measure its PSNR.
            max_pixels: larger pictures are refused, in both directions; see `check_pixels`.
            cache_bytes: merged weights to keep besides the bases.
            max_batch: pictures or streams that are worth working on together here.
            adapters: folder that keeps the adapters loaded at run time; None forgets them.

        Raises:
            StoreError: a kept adapter is damaged or does not fit.
        """
        self._shelves = Shelves(models, None if adapters is None else AdapterFiles(adapters))
        self._check, self._max_pixels, self._max_batch = check, max_pixels, max_batch
        self._weights = Weights(cache_bytes)
        self._process = os.getpid()

    @property
    def _models(self) -> tuple[LoadedModel, ...]:
        """What new requests get, the first compresses. Read it once in a request.

        Raises:
            ForkedProcess: this process was forked from the one that loaded them.
        """
        check_process(self._process)
        return tuple(shelf.served for shelf in self._shelves.now)

    def models(self) -> tuple[ModelInfo, ...]:
        """What is loaded."""
        return tuple(_model_info(m.stored) for m in self._models)

    @property
    def max_batch(self) -> int:
        """Pictures or streams that are worth working on together here."""
        return self._max_batch

    def warm(self) -> int:
        """Merge the whole rates of the first model ahead of requests, as far as the cache holds.

        One ladder after the other.

        Returns:
            How many were merged and kept.
        """
        base, before = self._models[0], self._weights.size_bytes
        rates = [r for tune in base.stored.tunes for r in base.stored.ladder(tune)]
        merged = [r for r in rates if r.update is not None]
        for kept, rate in enumerate(merged):
            with self._weights.lease(base, round(PARTS * rate.rate), rate.tune):
                pass
            if self._weights.size_bytes <= before:  # it made another go, or was not kept
                return kept
            before = self._weights.size_bytes
        return len(merged)

    def compress(self, picture: Picture, rate: float, tune: str = PSNR) -> Compressed:
        """A picture as a stream.

        Args:
            picture: to compress. rate: 1–8. tune: whose rate, one of container.TUNES.

        Raises:
            RateUnavailable: no weights for that rate. BadParameter: no rate or tune at all.
            TooManyPixels: over the limit. MissingExtra: torch is not installed.
            CheckFailed: the fresh stream did not decode to what was encoded.
        """
        return _only(self.compress_batch([picture], rate, tune))

    def compress_batch(
        self, pictures: Sequence[Picture], rate: float, tune: str = PSNR
    ) -> list[Compressed | RankpressError]:
        """What `compress` gives or raises for each picture; the bytes are the same.

        Those of one padded size share the calls of the entropy networks.

        Raises:
            RateUnavailable, BadParameter, MissingExtra: as `compress` does, for all of them.
        """
        base = self._models[0]
        rate16 = rate16_of(rate, tune, base.stored)
        out: list[Compressed | RankpressError | None] = [None] * len(pictures)
        groups: dict[Box, list[int]] = defaultdict(list)
        for i, picture in enumerate(pictures):
            try:
                check_pixels(self._max_pixels, picture.width, picture.height)
            except TooManyPixels as error:
                out[i] = error
            else:
                groups[latent_box(picture.width, picture.height)].append(i)
        for places in groups.values():
            chosen = [pictures[i] for i in places]
            made = self._attempt(base, chosen, tune, rate16, lambda _: self._check)
            for i, one in zip(places, made, strict=True):
                out[i] = one
        return [one for one in out if one is not None]

    def compress_to(self, picture: Picture, target: Target, tune: str = PSNR) -> Compressed:
        """A picture as the stream that meets a target best, see target.py.

        Streams that are too big are dropped unchecked; a PSNR is measured whatever `check` says.

        Raises:
            TargetUnreachable: no rate of the tune meets it. Others as `compress`.
        """
        base = self._models[0]
        check_tune(tune, base.stored)
        check_pixels(self._max_pixels, picture.width, picture.height)
        goal = goal_of(target, picture.width * picture.height)

        def needs_check(data: bytes) -> bool:
            if isinstance(goal, QualityGoal):
                return True
            return self._check and goal.fits(len(data))

        def attempt(rate16: int) -> Compressed:
            keep = rate16 % PARTS == 0
            return _only(self._attempt(base, [picture], tune, rate16, needs_check, keep))

        return search(goal, base.stored, attempt, tune)

    def _attempt(
        self,
        base: LoadedModel,
        pictures: Sequence[Picture],
        tune: str,
        rate16: int,
        needs_check: Callable[[bytes], bool],
        keep: bool = True,
    ) -> list[Compressed | RankpressError]:
        """Pictures of one padded size at a rate, decoded again where `needs_check` of the stream.

        Timings are those of all of them together: each has waited for the others.
        """
        start = perf_counter()
        with self._weights.lease(base, rate16, tune, keep=keep) as model:
            live = perf_counter()
            encoded = encode_all(model, pictures, rate16, tune)
            done = perf_counter()
            wanted = [i for i, (data, _) in enumerate(encoded) if needs_check(data)]
            checked = verify(model, [(pictures[i], *encoded[i]) for i in wanted])
        found = dict(zip(wanted, checked, strict=True))
        code_s = encoded[0][1].code_s
        timings = Timings(live - start, done - live - code_s, code_s, perf_counter() - done)
        return [
            _compressed(data, picture, (rate16, tune), found.get(i), timings)
            for i, (picture, (data, _)) in enumerate(zip(pictures, encoded, strict=True))
        ]

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
        """Begin to adapt to a picture, or go on; see adaptation.py and types.Adapter."""
        plan = plan_of(effort)
        return self.adapt_by(
            picture, rate, plan, seed=seed, max_seconds=max_seconds, checkpoint=checkpoint
        )

    def adapt_by(
        self,
        picture: Picture,
        rate: float,
        plan: AdaptPlan,
        *,
        seed: int = 0,
        max_seconds: float | None = None,
        checkpoint: bytes | None = None,
    ) -> Adaptation:
        """The same by a plan of one's own."""
        base = self._models[0]
        if not (max_seconds is None or max_seconds > 0):
            raise BadParameter(f"max_seconds is {max_seconds:g}, expected more than 0")
        rate16 = rate16_of(rate, PSNR, base.stored)
        check_pixels(self._max_pixels, picture.width, picture.height)
        if base.analysis is None or base.build is None:
            raise MissingExtra("adapting needs torch: pip install 'rankpress[server]'")
        from service.adapt.run import Job, PictureAdaptation

        lmbda = base.stored.lmbda_at(rate16)
        if lmbda is None:
            raise BadParameter(f"the adapter of rate {rate:g} does not say its lmbda")
        at_rate = base.stored.at_rate(rate16)
        model = base if at_rate is base.stored else base.build(at_rate)
        job = Job(picture, rate16, lmbda, plan, seed, max_seconds)
        return PictureAdaptation(model, job, checkpoint)

    def decompress(self, data: bytes, region: Region | None = None) -> Decompressed:
        """A stream, or a region of it, as a picture.

        Raises:
            BadStream: damaged. UnsupportedStream: needs a newer decoder.
            UnknownModel: its weights are not in the store. TooManyPixels: over the limit.
            BadParameter: the region reaches outside the picture.
        """
        return self._decoded([self._ordered(data, region)])[0]

    def decompress_batch(self, streams: Sequence[bytes]) -> list[Decompressed | RankpressError]:
        """What `decompress` gives or raises for each stream; the pixels are the same.

        Those of one rate and padded size share the calls of the entropy networks.
        """
        out: list[Decompressed | RankpressError | None] = [None] * len(streams)
        groups: dict[object, list[tuple[int, Order]]] = defaultdict(list)
        for i, data in enumerate(streams):
            try:
                order = self._ordered(data, None)
            except RankpressError as error:
                out[i] = error
            else:
                groups[order.group].append((i, order))
        for group in groups.values():
            for (i, _), made in zip(group, self._decoded_each([o for _, o in group]), strict=True):
                out[i] = made
        return [one for one in out if one is not None]

    def _decoded_each(self, orders: Sequence[Order]) -> list[Decompressed | RankpressError]:
        """Together; one at a time where a damaged stream among them makes that fail."""
        try:
            return [*self._decoded(orders)]
        except RankpressError as error:
            if len(orders) == 1:
                return [error]
        return [made for order in orders for made in self._decoded_each([order])]

    def _decoded(self, orders: Sequence[Order]) -> list[Decompressed]:
        """Streams of one group as pictures. Timings are those of all of them together."""
        start = perf_counter()
        base, header = orders[0].base, orders[0].stream.header
        with self._weights.lease(base, header.rate16, header.tune) as model:
            live = perf_counter()
            latents = decode_all(model, [o.stream for o in orders], orders[0].want)
            rgbs = [
                paint(with_update(model, o.stream), one, o.want, o.grey)
                for one, o in zip(latents, orders, strict=True)
            ]
        code_s = latents[0].code_s
        timings = Timings(live - start, perf_counter() - live - code_s, code_s)
        return [o.decompressed(rgb, timings) for o, rgb in zip(orders, rgbs, strict=True)]

    def _ordered(self, data: bytes, region: Region | None) -> Order:
        """A stream that was read and found fit to be decoded."""
        header, want = self._wanted(data, region)
        stream = container.read_stream(data)
        return Order(self._base_of(header), stream, want)

    def _wanted(self, data: bytes, region: Region | None) -> tuple[container.Header, Box]:
        """The header of a stream that this decoder takes, and the pixels that are wanted of it."""
        header = container.read_header(data)
        if header.flags & container.Flags.SAME_MACHINE:
            raise UnsupportedStream(
                "the stream was made by a CompressAI model: only the machine that made it, serving "
                "that model, can decode it"
            )
        check_pixels(self._max_pixels, header.width, header.height)
        region = region or Region(0, 0, header.width, header.height)
        region.check_inside(header.width, header.height)
        want = Box(region.y, region.x, region.y + region.height, region.x + region.width)
        return header, want

    def picture_work(self, width: int, height: int) -> int:
        """How much compressing a picture once, and checking that, is: see codec.tiles.work_pixels.

        Raises:
            TooManyPixels: over the limit.
        """
        check_pixels(self._max_pixels, width, height)
        box = latent_box(width, height)
        once = work_pixels(box, box, self._models[0].stored.sizes.halo)
        return 2 * once if self._check else once

    def stream_work(self, data: bytes, region: Region | None = None) -> int:
        """How much decompressing a stream, or a region of it, is, as `picture_work`.

        Raises:
            BadStream, UnsupportedStream, TooManyPixels, BadParameter: as `decompress`.
        """
        header, want = self._wanted(data, region)
        box = latent_box(header.width, header.height)
        return work_pixels(box, latents_under(want), self._models[0].stored.sizes.halo)

    def picture_group(
        self, size: tuple[int, int] | None, rate: float, tune: str = PSNR
    ) -> Group | None:
        """What compressing a picture may run beside; None for a rate that there is not.

        Args:
            size: width and height if they are known; without, the picture is worked on alone.
        """
        stored = self._models[0].stored
        try:
            rate16 = rate16_of(rate, tune, stored)
        except BadParameter:
            return None
        weights = stored.identity_at(rate16, tune)[:4], rate16
        return Group(weights, size and batch_of("compress", *size))

    def stream_group(self, data: bytes, whole: bool) -> Group | None:
        """What decompressing a stream may run beside; None where that cannot be told.

        Args:
            data: the stream, which need not be sound. whole: no region is asked for.
        """
        try:
            header = container.read_header(data)
        except BadStream:
            return None
        batch = batch_of("decompress", header.width, header.height) if whole else None
        return Group((header.model, header.rate16), batch)

    def stream_shape(self, data: bytes) -> StreamShape:
        """What a stream's header says of its picture. Raises BadStream, UnsupportedStream."""
        return stream_shape(data)

    def adapters(self) -> tuple[AdapterInfo, ...]:
        """Every rate adapter that is loaded."""
        return self._shelves.infos()

    def add_adapter(
        self, data: bytes, base_sha256: str, rate: int, tune: str = PSNR
    ) -> AdapterInfo:
        """Load a rate adapter: from now on, requests of its rate get it.

        It is checked, merged and kept in the folder first. One that is there already stays so.

        Args:
            data: a safetensors file, see codec/lowrank.py. base_sha256: of the base weights that
                it is for, hex. rate: a whole rate; rates between mix it with the next.
            tune: the ladder that it belongs to.

        Raises:
            BadAdapter: it does not fit. TooManyBytes: larger than any that fits.
            BadParameter: no such base or rate, or the file is loaded for another rate already.
        """

        def prove(model: LoadedModel) -> None:
            """It runs here; and the first request is spared the merge."""
            with self._weights.lease(model, PARTS * rate, tune):
                pass

        return self._shelves.add(StoredAdapter(data, base_sha256, rate, tune), prove)

    def remove_adapter(self, sha256: str) -> None:
        """Unload an adapter; the one before it serves its rate again, or none does.

        Requests that run keep it until they end. Its streams cannot be decoded any more.

        Args:
            sha256: of its file, hex.

        Raises:
            UnknownAdapter: it is not loaded. BadParameter: it belongs to the store.
        """
        self._shelves.remove(sha256)

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

    def _base_of(self, header: container.Header) -> LoadedModel:
        """The model that made a stream."""
        check_process(self._process)
        known = []
        for shelf in self._shelves.now:
            made = shelf.made(header)
            if made is not None:
                return made
            stored = shelf.served.stored
            if stored.offers(header.rate16, header.tune):
                known.append(stored.identity_at(header.rate16, header.tune)[:4].hex())
        raise UnknownModel(
            f"the stream needs weights {header.model.hex()} at rate {header.rate:g}, tune "
            f"{header.tune}; there the store holds {', '.join(sorted(known)) or 'none'}"
        )


def _only(made: Sequence[Compressed | RankpressError]) -> Compressed:
    """The one result. Raises the error that it may be."""
    (one,) = made
    if isinstance(one, RankpressError):
        raise one
    return one


def _compressed(
    data: bytes,
    picture: Picture,
    place: tuple[int, str],
    checked: float | CheckFailed | None,
    timings: Timings,
) -> Compressed | RankpressError:
    if isinstance(checked, CheckFailed):
        return checked
    bpp = 8 * len(data) / (picture.width * picture.height)
    size, rate = (picture.width, picture.height), place[0] / container.RATE_UNIT
    return Compressed(data, *size, rate, bpp, checked, timings, tune=place[1])


def _model_info(m: StoredModel) -> ModelInfo:
    rates = tuple(
        RateInfo(
            r.rate,
            r.tune,
            r.lmbda,
            r.kodak_bpp,
            r.kodak_psnr_db,
            r.kodak_ms_ssim,
            r.digest.hex() or None,
            r.file_bytes,
        )
        for r in m.rates
    )
    return ModelInfo(m.name, m.sha256, m.parameters, m.file_bytes, rates, dict(m.training))
