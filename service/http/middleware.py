"""Around every request: its id, who may send it, its limits, its log line, its metrics, and 500s.

A plain ASGI middleware outside all exception handlers, so that what it counts is what was sent.

An answer may be complete before its request is: a body that is too large, to a path that does not
exist. A server that then closes the connection makes the kernel reset it, and a client that writes
its whole body before it reads loses the answer. So the rest of the body is read and dropped, within
limits, while the answer is already with the client, and only then is the connection closed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from functools import partial
from typing import Any

import structlog
from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.engine.admission import Admission, Phase
from service.errors import RankpressError, Saturated
from service.http.clients import RETRY_S, SharedLimit, client_of
from service.http.holds import ClientHold, Spool
from service.http.metrics import Metrics
from service.http.origins import Origins
from service.http.problems import internal_problem, on_rankpress_error
from service.http.record import Record, request_id
from service.settings import MIB, Settings

CLIENT_LEFT = 499
"""Logged and counted when the client left before an answer (nginx's number); never sent."""

PIECE_BYTES = 256 * 1024
"""Answers are sent in pieces of this size, each with its own time limit."""

DROPPED_BODIES = 4
"""Bytes of an unwanted body that are read and dropped, in bodies of the largest size allowed."""

SILENCE_S = 5.0
"""Seconds without a byte after which the rest of an unwanted body is given up."""

SHORT_BODY_BYTES = MIB // 16
"""After an unwanted body of no more bytes, the connection is kept for further requests."""

HEALTH_SHARE = 16
"""One of so many connections is kept for health checks when the others are at work."""

QUIET_ROUTES = frozenset({"/livez", "/readyz", "/metrics"})

log = structlog.get_logger("rankpress.api")


class RequestMiddleware:
    """Wraps the app; websockets and lifespan pass through."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        admission: Admission,
        metrics: Metrics,
        settings: Settings,
        spool: Spool,
    ) -> None:
        self._app = app
        self._admission = admission
        self._metrics = metrics
        self._settings = settings
        self._spool = spool
        self._origins = Origins(settings)
        share = settings.client_share
        limit = settings.connection_limit
        self._requests = SharedLimit("requests at a time", limit - limit // HEALTH_SHARE, share)
        self._memory = SharedLimit("memory", settings.max_waiting_bytes, share)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        offered_id = Headers(scope=scope).get("x-request-id")
        client = client_of((scope.get("client") or (None,))[0])
        hold = ClientHold(self._admission, self._memory, self._spool, client)
        record = Record(request_id(offered_id), hold)
        exchange = _Exchange(scope, receive, send, record, self._settings)
        app, is_full = self._app, False
        try:
            self._check(exchange, client)
        except RankpressError as error:
            app, is_full = partial(_refuse, error), isinstance(error, Saturated)
        self._requests.take(client, 1)
        self._metrics.begin_request()
        try:
            await self._answer(exchange, app)
            await exchange.finish(partial(self._patience_s, is_full))
        finally:
            self._requests.take(client, -1)

    @property
    def _crowded(self) -> bool:
        """Whether so many requests are open that only health checks are answered."""
        return self._requests.left < 0

    def _check(self, exchange: _Exchange, client: str) -> None:
        """Raise for a request that the app should not see.

        Raises:
            UnknownHost, ForeignOrigin: as `Origins.check` does.
            Saturated: too many requests are open, of the client or of all.
        """
        self._origins.check(exchange.method, exchange.path, exchange.headers)
        if exchange.path not in QUIET_ROUTES:
            self._requests.check(client, 1)
            if self._requests.left < 1:
                raise Saturated("too many requests are open", RETRY_S)

    async def _answer(self, exchange: _Exchange, app: ASGIApp) -> None:
        """Answer a request, then count and log it."""
        record = exchange.record
        try:
            await exchange.run(app)
        finally:
            record.hold.release()
            seconds = time.perf_counter() - exchange.begun
            self._metrics.end_request(
                exchange.route,
                exchange.status,
                seconds,
                exchange.bytes_in,
                exchange.bytes_out,
                record,
            )
            _log_request(exchange, seconds)

    def _patience_s(self, is_full: bool) -> float:
        """Seconds that the rest of an unwanted body is read for, as a request at work.

        Args:
            is_full: whether it is unwanted because there are too many requests.
        """
        if is_full or self._crowded:
            return 0.0
        draining = self._admission.phase is Phase.DRAINING
        return SILENCE_S if draining else self._settings.body_timeout_s


async def _refuse(error: RankpressError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer an error."""
    response = await on_rankpress_error(Request(scope), error)
    await response(scope, receive, send)


class _Exchange:
    """One request and its answer: what went in, what came out."""

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, record: Record, settings: Settings
    ) -> None:
        self.record = record
        self.method: str = scope["method"][:16]
        self.client: str | None = (scope.get("client") or (None,))[0]
        self.path: str = scope["path"].removeprefix(scope.get("root_path", ""))
        self.status = CLIENT_LEFT
        self.bytes_in = 0
        self.bytes_out = 0
        self.begun = time.perf_counter()
        self._receive = receive
        self._send = send
        self._settings = settings
        self._started = False
        self.headers = Headers(scope=scope)
        self._body_ended = not _has_body(self.headers)
        self._end_withheld = False
        # A HEAD request takes the GET route; its answer's body is dropped in `_send_body`. Ranges
        # are for GET alone.
        self._scope = dict(scope)
        if self.method == "HEAD":
            headers = [h for h in scope["headers"] if h[0].lower() != b"range"]
            self._scope |= {"method": "GET", "headers": headers}
        record.attach(self._scope)

    @property
    def route(self) -> str:
        """The path as declared, "other" for one that is not."""
        route = self._scope.get("route")
        return str(getattr(route, "path", "other"))

    async def run(self, app: ASGIApp) -> None:
        """Run the app; answer 500 when it fails before it has begun to answer."""
        try:
            await app(self._scope, self.receive, self.send)
        except (ClientDisconnect, _ClientStalled):
            pass
        except Exception:
            log.exception("unexpected error", id=self.record.id, route=self.route)
            if self._started:
                raise
            response = internal_problem(Request(self._scope))
            await response(self._scope, self.receive, self.send)

    async def receive(self) -> Message:
        """Pass on a message from the client, counting its bytes."""
        message = await self._receive()
        if message["type"] == "http.request":
            self.bytes_in += len(message.get("body", b""))
        self._body_ended |= not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """Pass on a message to the client: with the request's id, and in limited pieces."""
        if message["type"] == "http.response.start":
            self._started = True
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-Id"] = self.record.id
            headers["X-Content-Type-Options"] = "nosniff"
            if not self._body_ended and not _has_short_body(self.headers):
                headers["Connection"] = "close"
            await self._send(message)
        elif message["type"] == "http.response.body":
            await self._send_body(message)
        else:
            await self._send(message)

    async def finish(self, patience_s: Callable[[], float]) -> None:
        """End an answer that was complete before its request was, once the client has sent it all.

        Args:
            patience_s: seconds that the rest of the body is read for; may change meanwhile.
        """
        if not self._end_withheld:
            return
        begun_s = time.perf_counter()
        most_bytes = self.bytes_in + DROPPED_BODIES * self._settings.max_body_bytes
        with suppress(TimeoutError):
            while not self._body_ended and self.bytes_in < most_bytes:
                left_s = patience_s() - (time.perf_counter() - begun_s)
                async with asyncio.timeout(min(left_s, SILENCE_S, self._settings.stall_timeout_s)):
                    await self.receive()
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_body(self, message: MutableMapping[str, Any]) -> None:
        body = b"" if self.method == "HEAD" else message.get("body", b"")
        more = message.get("more_body", False)
        if not more and not self._body_ended:
            more = self._end_withheld = True
        self.record.hold.add(len(body))
        view = memoryview(body)
        try:
            await self._send_pieces(view, more)
        finally:
            self.record.hold.add(-len(body))

    async def _send_pieces(self, view: memoryview, more: bool) -> None:
        for start in range(0, max(1, len(view)), PIECE_BYTES):
            piece = bytes(view[start : start + PIECE_BYTES])
            last = start + PIECE_BYTES >= len(view)
            await self._send_piece(
                {"type": "http.response.body", "body": piece, "more_body": more or not last}
            )
            self.bytes_out += len(piece)

    async def _send_piece(self, message: Message) -> None:
        try:
            async with asyncio.timeout(self._settings.stall_timeout_s):
                await self._send(message)
        except TimeoutError:
            # The server closes the connection of an answer that was not completed.
            raise _ClientStalled from None


class _ClientStalled(Exception):
    """The client stopped reading its answer."""


def _has_body(headers: Headers) -> bool:
    """Whether a request with these headers has a body."""
    return "transfer-encoding" in headers or headers.get("content-length", "0").strip("0 ") != ""


def _has_short_body(headers: Headers) -> bool:
    """Whether a request with these headers has a body that is short and sent unasked."""
    length = headers.get("content-length", "")
    short = length.isascii() and length.isdigit() and int(length[:18]) <= SHORT_BODY_BYTES
    return short and "expect" not in headers


def _log_request(exchange: _Exchange, seconds: float) -> None:
    record = exchange.record
    facts = {
        "client": exchange.client,
        "rate": record.rate,
        "bpp": None if record.bpp is None else round(record.bpp, 4),
        "pixels": record.pixels,
        "model": record.model,
        "problem": record.problem,
        "queue_ms": None if record.queue_s is None else round(record.queue_s * 1000, 2),
    }
    write = log.debug if exchange.route in QUIET_ROUTES and exchange.status < 500 else log.info
    write(
        "request",
        id=record.id,
        method=exchange.method,
        route=exchange.route,
        status=exchange.status,
        bytes_in=exchange.bytes_in,
        bytes_out=exchange.bytes_out,
        ms=round(seconds * 1000, 2),
        **{name: value for name, value in facts.items() if value is not None},
    )
