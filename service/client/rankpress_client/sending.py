"""Sending calls: the two thin senders, one for threads and one for asyncio.

Both do the same, step by step: what they have in common is in the modules that they use.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import httpx

from .answers import ServerAnswer
from .calls import Call
from .errors import RankpressClientError, transport_error
from .files import AsyncPieces, Body, Output, Pieces, open_body, open_output
from .problems import error_of
from .retries import Attempts, RetryPolicy, retry_after_s

T = TypeVar("T")

TIMEOUT: Final = httpx.Timeout(connect=10.0, read=150.0, write=30.0, pool=150.0)
"""Default limits in seconds; a server answers within 120 by default, or refuses."""

MAX_PROBLEM_BYTES: Final = 1 << 16
"""Bytes of an answer that is no success that are read."""

Clock = Callable[[], float]


@dataclass(frozen=True)
class Address:
    """Where requests go, and what goes with each.

    Attributes:
        url: of the server, without a slash at the end. headers: of every request.
        timeout: of one attempt.
    """

    url: str
    headers: Mapping[str, str]
    timeout: httpx.Timeout

    def request(
        self,
        call: Call[Any],
        pieces: Pieces | AsyncPieces | None,
        attempts: Attempts,
        silence_s: float | None = None,
    ) -> dict[str, Any]:
        """Return the arguments of httpx's `build_request` for one attempt of a call.

        Args:
            pieces: of the body, if it has one.
            silence_s: seconds without a byte that are allowed, where they are not the usual ones.
        """
        limits = attempts.limited(self.timeout).as_dict()
        headers = {"Accept-Encoding": "identity", **self.headers, **call.headers}
        if pieces is not None:
            headers["Content-Length"] = str(pieces.body.size)
        return {
            "method": call.method,
            "url": self.url + call.path,
            "params": dict(call.params),
            "headers": headers,
            "content": pieces,
            "timeout": httpx.Timeout(**limits | ({} if silence_s is None else {"read": silence_s})),
        }


def make_address(
    url: str, token: str | None, headers: Mapping[str, str] | None, timeout: httpx.Timeout
) -> Address:
    """Return the address of a server. Raises ValueError: the URL is not one of HTTP."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f"the URL is {url!r}, which is none: {error}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f"the URL is {url!r}, expected one that begins with http:// or https://")
    if parsed.query or parsed.fragment:
        raise ValueError(f"the URL is {url!r}, expected one that ends with the path, if it has one")
    own = {"User-Agent": "rankpress-client"}
    if token is not None:
        own["Authorization"] = f"Bearer {token}"
    return Address(url.rstrip("/"), own | dict(headers or {}), timeout)


def time_limits(timeout: float | httpx.Timeout | None, own: httpx.Timeout | None) -> httpx.Timeout:
    """Return the limits that were given, else those of the caller's httpx client, or TIMEOUT."""
    if timeout is None:
        return TIMEOUT if own is None else own
    return httpx.Timeout(timeout)


class Sender:
    """Sends calls and waits for their answers. Threads may share it."""

    def __init__(
        self,
        http: httpx.Client,
        address: Address,
        policy: RetryPolicy,
        clock: Clock = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Send through an httpx client, which is the caller's."""
        self._http, self._address, self._policy = http, address, policy
        self.clock, self.sleep, self._jitter = clock, sleep, jitter

    def send(self, call: Call[T], max_seconds: float | None = None) -> T:
        """Return the result of a call, after as many attempts as it takes and is allowed.

        Args:
            max_seconds: a limit for this call, where it is below that of the policy.

        Raises:
            RankpressClientError: the error of the last attempt.
            OSError: a file cannot be read or written.
        """
        attempts = Attempts(self._policy, call.repeat, self.clock, self._jitter, max_seconds)
        with open_body(call.body) as body, open_output(call.into) as output:
            while True:
                try:
                    result = self._attempt(call, body, output, attempts)
                except RankpressClientError as error:
                    pause_s = attempts.pause_s(error)
                else:
                    output.commit()
                    return result
                self.sleep(pause_s)

    def _attempt(self, call: Call[T], body: Body | None, output: Output, attempts: Attempts) -> T:
        output.restart()
        pieces = None if body is None else Pieces(body, attempts.check)
        request = self._http.build_request(**self._address.request(call, pieces, attempts))
        with self._opened(request, call.also_read) as response:
            for piece in response.iter_bytes():
                attempts.check()
                output.write(piece)
        return call.read(_answer(response, output))

    @contextmanager
    def pieces(self, call: Call[Any], silence_s: float) -> Iterator[Iterator[bytes]]:
        """Open the answer of one attempt of a call, to be read while it arrives.

        Args:
            silence_s: seconds without a byte after which to raise TimedOutError.
        """
        attempts = Attempts(self._policy, call.repeat, self.clock, self._jitter)
        request = self._http.build_request(**self._address.request(call, None, attempts, silence_s))
        with self._opened(request, call.also_read) as response:
            yield response.iter_bytes()

    @contextmanager
    def _opened(
        self, request: httpx.Request, also_read: frozenset[int]
    ) -> Iterator[httpx.Response]:
        """Open an answer. Raises RankpressClientError: it is an error, or reading it fails."""
        try:
            response = self._http.send(request, stream=True)
            try:
                if not _is_answer(response, also_read):
                    raise _error(response, _beginning(response))
                yield response
            finally:
                response.close()
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise transport_error(error) from error


class AsyncSender:
    """Sends calls and waits for their answers. Tasks may share it."""

    def __init__(
        self,
        http: httpx.AsyncClient,
        address: Address,
        policy: RetryPolicy,
        clock: Clock = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Send through an httpx client, which is the caller's."""
        self._http, self._address, self._policy = http, address, policy
        self.clock, self.sleep, self._jitter = clock, sleep, jitter

    async def send(self, call: Call[T], max_seconds: float | None = None) -> T:
        """See `Sender.send`. A task that is cancelled stops at once."""
        attempts = Attempts(self._policy, call.repeat, self.clock, self._jitter, max_seconds)
        with ExitStack() as closing:
            body = await asyncio.to_thread(closing.enter_context, open_body(call.body))
            output = await asyncio.to_thread(closing.enter_context, open_output(call.into))
            while True:
                try:
                    result = await self._attempt(call, body, output, attempts)
                except RankpressClientError as error:
                    pause_s = attempts.pause_s(error)
                else:
                    await asyncio.to_thread(output.commit)
                    return result
                await self.sleep(pause_s)

    async def _attempt(
        self, call: Call[T], body: Body | None, output: Output, attempts: Attempts
    ) -> T:
        output.restart()
        pieces = None if body is None else AsyncPieces(body, attempts.check)
        request = self._http.build_request(**self._address.request(call, pieces, attempts))
        async with self._opened(request, call.also_read) as response:
            async for piece in response.aiter_bytes():
                attempts.check()
                await asyncio.to_thread(output.write, piece)
        return call.read(_answer(response, output))

    @asynccontextmanager
    async def pieces(
        self, call: Call[Any], silence_s: float
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """See `Sender.pieces`."""
        attempts = Attempts(self._policy, call.repeat, self.clock, self._jitter)
        request = self._http.build_request(**self._address.request(call, None, attempts, silence_s))
        async with self._opened(request, call.also_read) as response:
            yield response.aiter_bytes()

    @asynccontextmanager
    async def _opened(
        self, request: httpx.Request, also_read: frozenset[int]
    ) -> AsyncIterator[httpx.Response]:
        """See `Sender._opened`."""
        try:
            response = await self._http.send(request, stream=True)
            try:
                if not _is_answer(response, also_read):
                    raise _error(response, await _beginning_async(response))
                yield response
            finally:
                await response.aclose()
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise transport_error(error) from error


def _is_answer(response: httpx.Response, also_read: frozenset[int]) -> bool:
    return response.is_success or response.status_code in also_read


def _answer(response: httpx.Response, output: Output) -> ServerAnswer:
    return ServerAnswer(
        response.status_code, response.headers, output.data, output.size, output.sha256
    )


def _beginning(response: httpx.Response) -> bytes:
    """Return the first bytes of an answer that is an error."""
    text = b""
    for piece in response.iter_bytes():
        text += piece
        if len(text) > MAX_PROBLEM_BYTES:
            break
    return text


async def _beginning_async(response: httpx.Response) -> bytes:
    """See `_beginning`."""
    text = b""
    async for piece in response.aiter_bytes():
        text += piece
        if len(text) > MAX_PROBLEM_BYTES:
            break
    return text


def _error(response: httpx.Response, text: bytes) -> RankpressClientError:
    """Return the exception for an answer that is no success."""
    try:
        document = json.loads(text)
    except ValueError:
        document = None
    media_type = response.headers.get("Content-Type", "")
    return error_of(response.status_code, media_type, document, retry_after_s(response.headers))
