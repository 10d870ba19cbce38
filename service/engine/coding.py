"""Compressing and decompressing with the weights of a rate: one picture, or several in one call.

Requests arrive here checked (engine.py). Pictures or streams of one rate and one padded size can
share the calls of the entropy networks; the results are the same as alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from time import perf_counter
from typing import TypeVar

from service.codec.lowrank import PARTS
from service.engine.requests import DecodeRequest
from service.engine.target_search import Goal
from service.engine.types import Compressed, Decompressed, Timings
from service.engine.weight_cache import RateKey, WeightCache
from service.errors import CheckFailed, RankpressError
from service.picture import Picture
from service.runtime.check import check_group, check_stream
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

    With `check`, every fresh stream is decoded, its latents compared and its PSNR measured.
    """

    def __init__(self, weights: WeightCache, check: bool) -> None:
        self._weights, self._check = weights, check

    def compress(
        self, base: LoadedModel, key: RateKey, picture: Picture, goal: Goal | None = None
    ) -> Compressed:
        """A picture as a stream.

        Args:
            base: resident at its own rate. key: of a rate of the base.
            goal: of a search that tries this rate, which says what must be checked; weights of
                rates between whole ones are then not kept.

        Raises:
            CheckFailed: the fresh stream did not decode to what was encoded.
        """
        start = perf_counter()
        keep = goal is None or key.rate16 % PARTS == 0
        with self._weights.lease(base, key, keep=keep) as model:
            live = perf_counter()
            data, latents = encode(model, picture, key.rate16, key.tune)
            done = perf_counter()
            needs_check = self._check if goal is None else goal.needs_check(data, self._check)
            psnr_db = check_stream(model, picture, data, latents) if needs_check else None
        timings = _compress_timings(start, live, done, latents.code_s)
        return _compressed(picture, key, data, psnr_db, timings)

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
            checks: Sequence[float | CheckFailed | None] = [None] * len(pictures)
            if self._check:
                checks = check_group(model, pictures, encoded)
        timings = _compress_timings(start, live, done, encoded[0][1].code_s)
        return [
            check
            if isinstance(check, CheckFailed)
            else _compressed(picture, key, data, check, timings)
            for picture, (data, _), check in zip(pictures, encoded, checks, strict=True)
        ]

    def decompress(self, request: DecodeRequest) -> Decompressed:
        """A stream as a picture. Raises BadStream: its latents, alpha or update are damaged."""
        start = perf_counter()
        with self._weights.lease(request.base, request.key) as model:
            live = perf_counter()
            latents = decode_latents(model, request.stream, request.pixels)
            rgb = request.paint(model, latents)
        return request.answer(rgb, _decompress_timings(start, live, latents.code_s))

    def decompress_group(
        self, requests: Sequence[DecodeRequest]
    ) -> list[Decompressed | RankpressError]:
        """What `decompress` returns or raises for each of several streams of one group.

        They are decoded together, and one by one where one of them is damaged.
        """
        if len(requests) > 1:
            try:
                return [*self._decompress_together(requests)]
            except RankpressError:
                pass
        return [self._try_decompress(request) for request in requests]

    def _decompress_together(self, requests: Sequence[DecodeRequest]) -> list[Decompressed]:
        """Streams of one group as pictures. Timings are those of all of them together."""
        first, start = requests[0], perf_counter()
        with self._weights.lease(first.base, first.key) as model:
            live = perf_counter()
            latents = decode_all(model, [r.stream for r in requests], first.pixels)
            painted = [r.paint(model, one) for r, one in zip(requests, latents, strict=True)]
        timings = _decompress_timings(start, live, latents[0].code_s)
        return [r.answer(rgb, timings) for r, rgb in zip(requests, painted, strict=True)]

    def _try_decompress(self, request: DecodeRequest) -> Decompressed | RankpressError:
        try:
            return self.decompress(request)
        except RankpressError as error:
            return error


def _compress_timings(start: float, live: float, done: float, code_s: float) -> Timings:
    return Timings(live - start, done - live - code_s, code_s, perf_counter() - done)


def _decompress_timings(start: float, live: float, code_s: float) -> Timings:
    return Timings(live - start, perf_counter() - live - code_s, code_s)


def _compressed(
    picture: Picture, key: RateKey, data: bytes, psnr_db: float | None, timings: Timings
) -> Compressed:
    width, height = picture.width, picture.height
    bpp = 8 * len(data) / (width * height)
    rate = key.rate16 / PARTS
    return Compressed(data, width, height, rate, bpp, psnr_db, timings, tune=key.tune)


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
