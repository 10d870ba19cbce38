"""A Rankpress server as an object: `Rankpress` for threads, `AsyncRankpress` for asyncio.

Both have the same methods, with the same parameters. What is sent is a path, bytes or a file
object; what comes back is bytes, or is written to a path or file object, whole or not at all.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Unpack

import httpx

from . import calls
from .files import BodySource, Destination
from .jobs import AdaptJob, AsyncAdaptJob
from .objects import AsyncStoredObjects, StoredObjects
from .options import (
    AdaptOptions,
    ComparedFormat,
    CompareOptions,
    CompressOptions,
    DecompressOptions,
    MapsOptions,
)
from .pictures import AsyncNamedPictures, NamedPictures
from .results import (
    ComparedResult,
    FigureResult,
    OfferedModel,
    OfferedRate,
    PictureResult,
    ServerHealth,
    StreamResult,
)
from .retries import RetryPolicy
from .sending import AsyncSender, Clock, Sender, make_address, time_limits


class Rankpress:
    """A Rankpress server. Use it in a `with` block, or close it.

    Every method raises `ProblemError`, or a subclass for the type of the problem, where the server
    refuses, and `TransportError` where no whole answer arrived.

    Attributes:
        objects: the streams that the server keeps. pictures: those that have names.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | httpx.Timeout | None = None,
        retries: RetryPolicy | None = None,
        http: httpx.Client | None = None,
        clock: Clock = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Open nothing yet.

        Args:
            url: of the server, with its path if it has one.
            token: for `Authorization: Bearer`. headers: of every request.
            timeout: seconds to connect, to write and to read a piece, and to wait for an answer.
            retries: how often and for how long calls are tried.
            http: the caller's httpx client, which stays open; it may have a proxy or certificates.
            clock, sleep, jitter: stand-ins for the clock, the pauses and the random numbers.

        Raises:
            ValueError: the URL is not one of HTTP.
        """
        limits = time_limits(timeout, None if http is None else http.timeout)
        address = make_address(url, token, headers, limits)
        self._http, self._is_own = http or httpx.Client(), http is None
        self._sender = Sender(self._http, address, retries or RetryPolicy(), clock, sleep, jitter)
        self.objects = StoredObjects(self._sender)
        self.pictures = NamedPictures(self._sender)

    def __enter__(self) -> Rankpress:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections, unless they are those of the caller's httpx client."""
        if self._is_own:
            self._http.close()

    def compress(
        self,
        source: BodySource,
        into: Destination | None = None,
        **options: Unpack[CompressOptions],
    ) -> StreamResult:
        """Compress an image file to a stream.

        Args:
            source: a path, bytes or a file object.
            into: a path or file object to write to; None for memory.
            options: see `CompressOptions`.
        """
        return self._sender.send(calls.compress(source, into, options))

    def decompress(
        self,
        source: BodySource,
        into: Destination | None = None,
        **options: Unpack[DecompressOptions],
    ) -> PictureResult:
        """Decompress a stream to an image file: PNG, unless options say otherwise.

        Args:
            source: a path, bytes or a file object.
            into: a path or file object to write to; None for memory.
            options: see `DecompressOptions`.
        """
        return self._sender.send(calls.decompress(source, into, options))

    def compare(
        self,
        source: BodySource,
        format: ComparedFormat,
        into: Destination | None = None,
        **options: Unpack[CompareOptions],
    ) -> ComparedResult:
        """Write an image file as JPEG, WebP or AVIF of a size or quality, to compare with.

        Args:
            source: a path, bytes or a file object.
            into: a path or file object to write to; None for memory.
            options: see `CompareOptions`.
        """
        return self._sender.send(calls.compare(source, format, into, options))

    def maps(
        self,
        source: BodySource,
        into: Destination | None = None,
        **options: Unpack[MapsOptions],
    ) -> FigureResult:
        """Draw where a stream, or an image file at several rates, spends its bits, as a PNG file.

        Args:
            source: a path, bytes or a file object.
            into: a path or file object to write to; None for memory.
            options: see `MapsOptions`.
        """
        return self._sender.send(calls.maps(source, into, options))

    def adapt(self, source: BodySource, **options: Unpack[AdaptOptions]) -> AdaptJob:
        """Start a job that adapts the codec to one image; the same call again is the same job.

        Args:
            source: a path, bytes or a file object.
            options: see `AdaptOptions`.

        Raises:
            JobsOffError: the server offers no jobs.
        """
        return AdaptJob(self._sender, self._sender.send(calls.adapt(source, options)))

    def job(self, job_id: str) -> AdaptJob:
        """Find a job that was started before.

        Raises:
            UnknownJobError, ExpiredJobError: there is none, or none any more.
        """
        return AdaptJob(self._sender, self._sender.send(calls.job(job_id)))

    def models(self) -> tuple[OfferedModel, ...]:
        """Return the models that are loaded; the first compresses where no other is named."""
        return self._sender.send(calls.MODELS)

    def rates(self) -> tuple[OfferedRate, ...]:
        """Return all rates, by tune and then from the smallest."""
        return self._sender.send(calls.RATES)

    def health(self) -> ServerHealth:
        """Return whether the server is ready; asks once."""
        return self._sender.send(calls.HEALTH)


class AsyncRankpress:
    """A Rankpress server. Use it in an `async with` block, or close it.

    Every method raises `ProblemError`, or a subclass for the type of the problem, where the server
    refuses, and `TransportError` where no whole answer arrived.

    Attributes:
        objects: the streams that the server keeps. pictures: those that have names.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | httpx.Timeout | None = None,
        retries: RetryPolicy | None = None,
        http: httpx.AsyncClient | None = None,
        clock: Clock = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Open nothing yet.

        Args:
            url: of the server, with its path if it has one.
            token: for `Authorization: Bearer`. headers: of every request.
            timeout: seconds to connect, to write and to read a piece, and to wait for an answer.
            retries: how often and for how long calls are tried.
            http: the caller's httpx client, which stays open; it may have a proxy or certificates.
            clock, sleep, jitter: stand-ins for the clock, the pauses and the random numbers.

        Raises:
            ValueError: the URL is not one of HTTP.
        """
        limits = time_limits(timeout, None if http is None else http.timeout)
        address = make_address(url, token, headers, limits)
        self._http, self._is_own = http or httpx.AsyncClient(), http is None
        self._sender = AsyncSender(
            self._http, address, retries or RetryPolicy(), clock, sleep, jitter
        )
        self.objects = AsyncStoredObjects(self._sender)
        self.pictures = AsyncNamedPictures(self._sender)

    async def __aenter__(self) -> AsyncRankpress:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections, unless they are those of the caller's httpx client."""
        if self._is_own:
            await self._http.aclose()

    async def compress(
        self,
        source: BodySource,
        into: Destination | None = None,
        **options: Unpack[CompressOptions],
    ) -> StreamResult:
        """Compress an image file to a stream.

        Args:
            source: a path, bytes or a file object.
            into: a path or file object to write to; None for memory.
            options: see `CompressOptions`.
        """
        return await self._sender.send(calls.compress(source, into, options))

    async def decompress(
        self,
        source: BodySource,
        into: Destination | None = None,
        **options: Unpack[DecompressOptions],
    ) -> PictureResult:
        """Decompress a stream to an image file: PNG, unless options say otherwise.

        Args:
            source: a path, bytes or a file object.
            into: a path or file object to write to; None for memory.
            options: see `DecompressOptions`.
        """
        return await self._sender.send(calls.decompress(source, into, options))

    async def compare(
        self,
        source: BodySource,
        format: ComparedFormat,
        into: Destination | None = None,
        **options: Unpack[CompareOptions],
    ) -> ComparedResult:
        """Write an image file as JPEG, WebP or AVIF of a size or quality, to compare with.

        Args:
            source: a path, bytes or a file object.
            into: a path or file object to write to; None for memory.
            options: see `CompareOptions`.
        """
        return await self._sender.send(calls.compare(source, format, into, options))

    async def maps(
        self,
        source: BodySource,
        into: Destination | None = None,
        **options: Unpack[MapsOptions],
    ) -> FigureResult:
        """Draw where a stream, or an image file at several rates, spends its bits, as a PNG file.

        Args:
            source: a path, bytes or a file object.
            into: a path or file object to write to; None for memory.
            options: see `MapsOptions`.
        """
        return await self._sender.send(calls.maps(source, into, options))

    async def adapt(self, source: BodySource, **options: Unpack[AdaptOptions]) -> AsyncAdaptJob:
        """Start a job that adapts the codec to one image; the same call again is the same job.

        Args:
            source: a path, bytes or a file object.
            options: see `AdaptOptions`.

        Raises:
            JobsOffError: the server offers no jobs.
        """
        return AsyncAdaptJob(self._sender, await self._sender.send(calls.adapt(source, options)))

    async def job(self, job_id: str) -> AsyncAdaptJob:
        """Find a job that was started before.

        Raises:
            UnknownJobError, ExpiredJobError: there is none, or none any more.
        """
        return AsyncAdaptJob(self._sender, await self._sender.send(calls.job(job_id)))

    async def models(self) -> tuple[OfferedModel, ...]:
        """Return the models that are loaded; the first compresses where no other is named."""
        return await self._sender.send(calls.MODELS)

    async def rates(self) -> tuple[OfferedRate, ...]:
        """Return all rates, by tune and then from the smallest."""
        return await self._sender.send(calls.RATES)

    async def health(self) -> ServerHealth:
        """Return whether the server is ready; asks once."""
        return await self._sender.send(calls.HEALTH)
