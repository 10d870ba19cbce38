"""Compressing and decompressing with the weights of a rate: one picture, or several in one call.

Requests arrive here checked (engine.py). Pictures or streams of one rate and one padded size can
share the calls of the entropy networks; the results are the same as alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from time import perf_counter
from typing import TypeVar

from service.codec import container
from service.codec.container import PSNR
from service.codec.lowrank import PARTS
from service.engine.requests import DecodeRequest
from service.engine.target_search import Goal
from service.engine.types import NO_MODEL, Compressed, Decompressed, StreamBits, Timings
from service.engine.weight_cache import RateKey, WeightCache
from service.errors import CheckFailed, RankpressError
from service.picture import Picture
from service.runtime.check import BlockErrors, check_group, check_stream
from service.runtime.graphics_search import (
    EncodedPicture,
    GraphicsSearch,
    SearchRate,
    encode_best,
    encode_lossless,
)
from service.runtime.pipeline import (
    LoadedModel,
    decode_all,
    decode_latents,
    encode,
    encode_all,
)

Item = TypeVar("Item")
Prepared = TypeVar("Prepared")
Result = TypeVar("Result")


class PictureCoder:
    """Codes pictures with weights from a cache. Thread-safe.

    With `check`, every fresh stream is decoded and its latents compared; with `measure`, its
    pixels are decoded too. With `graphics`, streams get a graphics layer where that pays.
    """

    def __init__(self, weights: WeightCache, check: bool, measure: bool, graphics: bool) -> None:
        self._weights, self._check, self._measure = weights, check, measure
        self._graphics = graphics

    def compress(
        self,
        base: LoadedModel,
        key: RateKey,
        layers: GraphicsSearch,
        goal: Goal | None = None,
    ) -> Compressed:
        """A picture as a stream.

        Args:
            base: resident at its own rate. key: of a rate of the base.
            layers: search for a graphics layer of the picture, which it holds.
            goal: of a search that tries this rate, which says what must be checked; weights of
                rates between whole ones are then not kept.

        Raises:
            CheckFailed: the fresh stream did not decode to what was encoded.
        """
        start, picture = perf_counter(), layers.picture
        keep = goal is None or key.rate16 % PARTS == 0
        with self._weights.lease(base, key, keep=keep) as model:
            live = perf_counter()
            data, latents = encode(model, picture, key.rate16, key.tune)
            done = perf_counter()
            needs_check = self._check if goal is None else goal.needs_check(data, self._check)
            measure = self._measure or (goal is not None and goal.needs_psnr)
            errors = check_stream(model, picture, data, latents, measure) if needs_check else None
            checked = perf_counter()
            plain = EncodedPicture(data, latents, errors=errors)
            best = self._with_layer(base, model, key, plain, layers)
        timings = _compress_timings(start, live, done, checked, latents.code_s)
        return _compressed(picture, best, (base, key), timings)

    def compress_lossless(self, layers: GraphicsSearch) -> Compressed:
        """A picture as a stream that holds every pixel exactly.

        Raises:
            CheckFailed: it does not.
        """
        start = perf_counter()
        best = encode_lossless(layers, self._check)
        return _compressed(layers.picture, best, None, Timings(graphics_s=perf_counter() - start))

    def compress_group(
        self, base: LoadedModel, key: RateKey, pictures: Sequence[Picture]
    ) -> list[Compressed | RankpressError]:
        """What `compress` returns or raises for each of several pictures of one padded size.

        Timings are those of all of them together: each has waited for the others.
        """
        start = perf_counter()
        with self._weights.lease(base, key) as model:
            live = perf_counter()
            encoded = encode_all(model, pictures, key.rate16, key.tune)
            done = perf_counter()
            checks: Sequence[BlockErrors | CheckFailed | None] = [None] * len(pictures)
            if self._check:
                checks = check_group(model, pictures, encoded, self._measure)
            checked = perf_counter()
            results: list[EncodedPicture | RankpressError] = []
            for picture, (data, latents), check in zip(pictures, encoded, checks, strict=True):
                if isinstance(check, CheckFailed):
                    results.append(check)
                    continue
                plain = EncodedPicture(data, latents, errors=check)
                layers = GraphicsSearch(picture)
                try:
                    results.append(self._with_layer(base, model, key, plain, layers))
                except RankpressError as error:
                    results.append(error)
        timings = _compress_timings(start, live, done, checked, encoded[0][1].code_s)
        return [
            result
            if isinstance(result, RankpressError)
            else _compressed(picture, result, (base, key), timings)
            for picture, result in zip(pictures, results, strict=True)
        ]

    def _with_layer(
        self,
        base: LoadedModel,
        model: LoadedModel,
        key: RateKey,
        plain: EncodedPicture,
        layers: GraphicsSearch,
    ) -> EncodedPicture:
        """The stream with the graphics layer that pays most, or the plain one."""
        lmbda = base.stored.lmbda_at(key.rate16, key.tune)
        if not self._graphics or lmbda is None:
            return plain
        rate = SearchRate(key.rate16, key.tune, lmbda, self._check)
        return encode_best(model, plain, layers, rate)

    def decompress(self, request: DecodeRequest) -> Decompressed:
        """A stream as a picture. Raises BadStream: its latents, alpha or update are damaged."""
        if request.source is None:
            return request.decompress_alone()
        start = perf_counter()
        with self._weights.lease(*request.source) as model:
            live = perf_counter()
            latents = request.decode(model)
            rgb = request.paint(model, latents)
        return request.answer(rgb, _decompress_timings(start, live, latents.code_s))

    def stream_bits(self, request: DecodeRequest) -> StreamBits:
        """Where a stream spends its bits. Raises BadStream: its latents are damaged."""
        if request.source is None:
            return request.bits_answer(None)
        with self._weights.lease(*request.source) as model:
            return request.bits_answer(
                decode_latents(model, request.stream, request.pixels, 0, with_bits=True)
            )

    def decompress_group(
        self, requests: Sequence[DecodeRequest]
    ) -> list[Decompressed | RankpressError]:
        """What `decompress` returns or raises for each of several streams of one group.

        They are decoded together, and one by one where one of them is damaged.
        """
        source = requests[0].source
        if len(requests) > 1 and source is not None:
            try:
                return [*self._decompress_together(source, requests)]
            except RankpressError:
                pass
        return [self._try_decompress(request) for request in requests]

    def _decompress_together(
        self, source: tuple[LoadedModel, RateKey], requests: Sequence[DecodeRequest]
    ) -> list[Decompressed]:
        """Streams of one group as pictures. Timings are those of all of them together."""
        start = perf_counter()
        with self._weights.lease(*source) as model:
            live = perf_counter()
            latents = decode_all(model, [r.stream for r in requests], requests[0].pixels)
            painted = [r.paint(model, one) for r, one in zip(requests, latents, strict=True)]
        timings = _decompress_timings(start, live, latents[0].code_s)
        return [r.answer(rgb, timings) for r, rgb in zip(requests, painted, strict=True)]

    def _try_decompress(self, request: DecodeRequest) -> Decompressed | RankpressError:
        try:
            return self.decompress(request)
        except RankpressError as error:
            return error


def _compress_timings(
    start: float, live: float, done: float, checked: float, code_s: float
) -> Timings:
    graphics_s = perf_counter() - checked
    return Timings(live - start, done - live - code_s, code_s, graphics_s, checked - done)


def _decompress_timings(start: float, live: float, code_s: float) -> Timings:
    return Timings(live - start, perf_counter() - live - code_s, code_s)


def _compressed(
    picture: Picture,
    encoded: EncodedPicture,
    source: tuple[LoadedModel, RateKey] | None,
    timings: Timings,
) -> Compressed:
    """The facts about a stream; `source` is its model and rate, None where it has none."""
    data, layer = encoded.data, encoded.layer
    rate, name, tune = container.LOSSLESS, NO_MODEL, PSNR
    if source is not None:
        base, key = source
        tune = key.tune
        if encoded.latents is not None:
            rate, name = key.rate16 / PARTS, base.stored.name
    return Compressed(
        data,
        picture.width,
        picture.height,
        rate,
        8 * len(data) / (picture.width * picture.height),
        encoded.psnr_db(picture),
        timings,
        name,
        tune=tune,
        graphics_share=0.0 if layer is None else layer.share,
    )


def by_group(
    items: Sequence[Item],
    prepare: Callable[[Item], tuple[Hashable, Prepared]],
    work: Callable[[list[Prepared]], list[Result | RankpressError]],
) -> list[Result | RankpressError]:
    """The results of work on items, done for one group of them after the other, in items' order.

    `prepare` gives the group of an item and what to work on; the error that it raises is the item's
    result. `work` is done for all that is prepared of a group.
    """
    out: list[Result | RankpressError | None] = [None] * len(items)
    groups: dict[Hashable, list[tuple[int, Prepared]]] = defaultdict(list)
    for i, item in enumerate(items):
        try:
            group, prepared = prepare(item)
        except RankpressError as error:
            out[i] = error
        else:
            groups[group].append((i, prepared))
    for entries in groups.values():
        results = work([prepared for _, prepared in entries])
        for (i, _), result in zip(entries, results, strict=True):
            out[i] = result
    return [result for result in out if result is not None]
