"""Around every request: its id, its limits on sending, its log line, its metrics, and 500s.

A plain ASGI middleware outside all exception handlers, so that what it counts is what was sent.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import MutableMapping
from typing import Any

import structlog
from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.errors import internal_problem
from service.api.metrics import Metrics
from service.api.record import Record, request_id
from service.engine.batching import Admission

CLIENT_LEFT = 499
"""Logged and counted when the client left before an answer (nginx's number); never sent."""

PIECE_BYTES = 256 * 1024
"""Answers are sent in pieces of this size, each with its own time limit."""

QUIET_ROUTES = frozenset({"/livez", "/readyz", "/metrics"})

log = structlog.get_logger("rankpress.api")


class RequestMiddleware:
    """Wraps the app; websockets and lifespan pass through."""

    def __init__(
        self, app: ASGIApp, *, admission: Admission, metrics: Metrics, stall_timeout_s: float
    ) -> None:
        self._app = app
        self._admission = admission
        self._metrics = metrics
        self._stall_timeout_s = stall_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        offered_id = Headers(scope=scope).get("x-request-id")
        record = Record(request_id(offered_id), self._admission.hold())
        exchange = _Exchange(scope, receive, send, record, self._stall_timeout_s)
        self._metrics.begin_request()
        try:
            await exchange.run(self._app)
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


class _Exchange:
    """One request and its answer: what went in, what came out."""

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, record: Record, stall_timeout_s: float
    ) -> None:
        self.record = record
        self.method: str = scope["method"][:16]
        self.status = CLIENT_LEFT
        self.bytes_in = 0
        self.bytes_out = 0
        self.begun = time.perf_counter()
        self._receive = receive
        self._send = send
        self._stall_timeout_s = stall_timeout_s
        self._started = False
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
        return message

    async def send(self, message: Message) -> None:
        """Pass on a message to the client: with the request's id, and in limited pieces."""
        if message["type"] == "http.response.start":
            self._started = True
            self.status = message["status"]
            MutableHeaders(scope=message)["X-Request-Id"] = self.record.id
            await self._send(message)
        elif message["type"] == "http.response.body":
            await self._send_body(message)
        else:
            await self._send(message)

    async def _send_body(self, message: MutableMapping[str, Any]) -> None:
        body = b"" if self.method == "HEAD" else message.get("body", b"")
        more = message.get("more_body", False)
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
            async with asyncio.timeout(self._stall_timeout_s):
                await self._send(message)
        except TimeoutError:
            # The server closes the connection of an answer that was not completed.
            raise _ClientStalled from None


class _ClientStalled(Exception):
    """The client stopped reading its answer."""


def _log_request(exchange: _Exchange, seconds: float) -> None:
    record = exchange.record
    facts = {
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
