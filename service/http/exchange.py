"""One request and its answer: passes ASGI messages on, counts their bytes and limits their time.

An answer may be complete before its request is, for example for a body that is too large. If the
server then closed the connection, the kernel would reset it, and a client that writes its whole
body before it reads would lose the answer. So the rest of the body is read and dropped, within
limits, after the answer was sent, and only then is the connection closed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from typing import Any, Final

import structlog
from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.context import CONTEXT_KEY, RequestContext
from service.http.problems import INTERNAL, problem
from service.settings import MIB, Settings

CLIENT_LEFT: Final = 499
"""Logged and counted if the client left before an answer (nginx's number); never sent."""

UNDECLARED: Final = "other"
"""Route of all paths that are not declared."""

PIECE_BYTES: Final = 256 * 1024
"""Answers are sent in pieces of this size, each with its own time limit."""

DROPPED_BODIES: Final = 4
"""Bytes of an unwanted body that are read and dropped, in bodies of the largest size allowed."""

SILENCE_S: Final = 5.0
"""Seconds without a byte after which the rest of an unwanted body is given up."""

SHORT_BODY_BYTES: Final = MIB // 16
"""After an unwanted body of at most this size, the connection is kept for further requests."""

log = structlog.get_logger("rankpress.api")


class Exchange:
    """One request and its answer.

    Attributes:
        path: without the root path.
        client: address of the client, None if unknown.
        status: of the answer, `CLIENT_LEFT` before it is sent.
        bytes_in: of the body that was read. bytes_out: of the body that was sent.
        started_s: when it began, by `time.perf_counter`.
    """

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        context: RequestContext,
        settings: Settings,
    ) -> None:
        self.context = context
        self.method: str = scope["method"][:16]
        self.client: str | None = (scope.get("client") or (None,))[0]
        self.path: str = scope["path"].removeprefix(scope.get("root_path", ""))
        self.headers = Headers(scope=scope)
        self.status = CLIENT_LEFT
        self.bytes_in = 0
        self.bytes_out = 0
        self.started_s = time.perf_counter()
        self._receive, self._send, self._settings = receive, send, settings
        self._has_answer = False
        self._body_complete = not _has_body(self.headers)
        self._end_delayed = False
        # A HEAD request takes the GET route; its answer's body is dropped in `_send_body`. Ranges
        # are for GET alone.
        self._scope = {**scope, CONTEXT_KEY: context}
        if self.method == "HEAD":
            context.is_head = True
            headers = [h for h in scope["headers"] if h[0].lower() != b"range"]
            self._scope |= {"method": "GET", "headers": headers}

    @property
    def route(self) -> str:
        """The path as declared, `UNDECLARED` for one that is not declared."""
        route = self._scope.get("route")
        return str(getattr(route, "path", UNDECLARED))

    async def run(self, app: ASGIApp) -> None:
        """Run the app; answer 500 if it fails before it has begun to answer."""
        try:
            await app(self._scope, self.receive, self.send)
        except ClientDisconnect:
            pass
        except Exception:
            log.exception("unexpected error", id=self.context.id, route=self.route)
            if self._has_answer:
                raise
            detail = "An unexpected error was logged under this request's id."
            response = problem(Request(self._scope), INTERNAL, detail)
            await response(self._scope, self.receive, self.send)

    async def receive(self) -> Message:
        """Pass on a message from the client, counting its bytes."""
        message = await self._receive()
        if message["type"] == "http.request":
            self.bytes_in += len(message.get("body", b""))
        self._body_complete |= not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """Pass on a message to the client: with the request's id, and in limited pieces."""
        if message["type"] == "http.response.start":
            self._has_answer = True
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-Id"] = self.context.id
            headers["X-Content-Type-Options"] = "nosniff"
            if not self._body_complete and not _has_short_body(self.headers):
                headers["Connection"] = "close"
        if message["type"] == "http.response.body":
            await self._send_body(message)
        else:
            await self._send(message)

    async def finish(self, limit_s: Callable[[], float]) -> None:
        """Drop the rest of a body whose answer was complete before it, then end the answer.

        Args:
            limit_s: seconds that the rest of the body is read for; may change meanwhile.
        """
        if not self._end_delayed:
            return
        started_s = time.perf_counter()
        max_bytes = self.bytes_in + DROPPED_BODIES * self._settings.max_body_bytes
        with suppress(TimeoutError):
            while not self._body_complete and self.bytes_in < max_bytes:
                remaining_s = limit_s() - (time.perf_counter() - started_s)
                timeout_s = min(remaining_s, SILENCE_S, self._settings.stall_timeout_s)
                async with asyncio.timeout(timeout_s):
                    await self.receive()
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_body(self, message: MutableMapping[str, Any]) -> None:
        body = b"" if self.method == "HEAD" else message.get("body", b"")
        more = message.get("more_body", False)
        if not more and not self._body_complete:
            more = self._end_delayed = True
        self.context.bytes.add(len(body))
        try:
            for start in range(0, max(1, len(body)), PIECE_BYTES):
                piece = bytes(body[start : start + PIECE_BYTES])
                is_last = start + PIECE_BYTES >= len(body)
                await self._send_piece(piece, more or not is_last)
        finally:
            self.context.bytes.add(-len(body))

    async def _send_piece(self, piece: bytes, more: bool) -> None:
        try:
            async with asyncio.timeout(self._settings.stall_timeout_s):
                await self._send({"type": "http.response.body", "body": piece, "more_body": more})
        except TimeoutError:
            # The server closes the connection of an answer that was not completed.
            raise ClientDisconnect from None
        self.bytes_out += len(piece)


def _has_body(headers: Headers) -> bool:
    """Whether a request with these headers has a body."""
    return "transfer-encoding" in headers or headers.get("content-length", "0").strip("0 ") != ""


def _has_short_body(headers: Headers) -> bool:
    """Whether a request with these headers has a short body that the client sends at once."""
    length = headers.get("content-length", "")
    short = length.isascii() and length.isdigit() and int(length[:18]) <= SHORT_BODY_BYTES
    return short and "expect" not in headers
