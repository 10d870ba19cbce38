"""HTTP/1.1 connections: how many there are, how long they may be silent, and what is not HTTP.

Uvicorn's protocol with limits that it does not have. Every connection takes a file descriptor, and
a process without free descriptors can open no file and accept nobody. So a connection beyond the
limit takes the place of the one that has been idle for longest. What is not HTTP is answered, and
what the client still sends is read and dropped for a moment: if the connection were closed at once,
the kernel would reset it, and the client would lose the answer.
"""

from __future__ import annotations

import asyncio
import errno
import json
import time
from asyncio import AbstractEventLoop, BaseTransport
from collections.abc import Callable
from typing import Any, Final, cast

import h11
import structlog
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.api.errors import BAD_REQUEST, MEDIA_TYPE
from service.settings import MIB

BACKLOG: Final = 512
"""Connections the kernel queues before they are accepted, and asyncio accepts in one go."""

LINGER_S: Final = 5.0
LINGER_BYTES: Final = 16 * MIB
"""What a client may go on sending, for so long, after it was told that it does not speak HTTP."""

QUIET_S: Final = 10.0
"""Seconds in which a line about too many connections is written once."""

OUT_OF_RESOURCES: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

NOT_HTTP: Final = json.dumps(
    {
        "type": BAD_REQUEST.type,
        "title": BAD_REQUEST.title,
        "status": BAD_REQUEST.status,
        "detail": "This is not HTTP/1.1, or its request line and headers are too long.",
    }
).encode()
"""Answer to what never becomes a request and so never reaches the app."""

log = structlog.get_logger("rankpress.server")


class RareWarning:
    """A warning that is written at most every `QUIET_S` seconds, with how often it was meant."""

    def __init__(self, event: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._event, self._clock = event, clock
        self._next_s = -float("inf")
        self._times = 0

    def __call__(self, **facts: object) -> None:
        """Write it, or count it for the next time."""
        self._times += 1
        if self._clock() >= self._next_s:
            log.warning(self._event, times=self._times, **facts)
            self._next_s, self._times = self._clock() + QUIET_S, 0


def report_accept_errors(loop: AbstractEventLoop) -> None:
    """Report connections that could not be accepted by a rare warning, not by a traceback each."""
    warn = RareWarning("no connection can be accepted: lower max_connections or raise ulimit -n")

    def handle(loop: AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if "socket" in context and isinstance(error, OSError) and error.errno in OUT_OF_RESOURCES:
            warn(error=str(error))
        else:
            loop.default_exception_handler(context)

    loop.set_exception_handler(handle)


def limited_protocol(max_connections: int, header_timeout_s: float) -> type[H11Protocol]:
    """Uvicorn's HTTP/1.1 protocol with limits on connections and on the time of the headers.

    A connection on which no request has begun `header_timeout_s` after it was opened, or after the
    first byte that follows an answer, is closed, however many bytes trickle in. Between an answer
    and that byte Uvicorn's own limit holds. What is not HTTP is answered by a
    problem document too.
    """
    idle: dict[Protocol, None] = {}
    """Connections by the time since which they may be idle, the longest first."""

    crowded = RareWarning("connections are at their limit")

    class Protocol(H11Protocol):
        _answered = False
        """Whether the last thing that happened was an answer."""

        _dropped_bytes: int | None = None
        """Bytes dropped of what the client still sends; None while they are read."""

        @property
        def is_idle(self) -> bool:
            """Whether there is no request at work."""
            return self.cycle is None or self.cycle.response_complete

        def connection_made(self, transport: BaseTransport) -> None:
            super().connection_made(cast(asyncio.Transport, transport))
            if len(self.connections) > max_connections:
                crowded(limit=max_connections)
                if not _close_one(idle):
                    self.transport.abort()
            self._note_idle()
            self._limit_headers()

        def connection_lost(self, exc: Exception | None) -> None:
            idle.pop(self, None)
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self._dropped_bytes is None:
                if self._answered:
                    self._answered = False
                    self._limit_headers()
                super().data_received(data)
                return
            self._dropped_bytes += len(data)
            if self._dropped_bytes > LINGER_BYTES:
                self.transport.abort()

        def on_response_complete(self) -> None:
            self._answered = True
            self._note_idle()
            super().on_response_complete()

        def send_400_response(self, msg: str) -> None:
            del msg
            if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                headers = [
                    ("Content-Type", MEDIA_TYPE),
                    ("Content-Length", str(len(NOT_HTTP))),
                    ("Connection", "close"),
                ]
                answer = h11.Response(status_code=400, headers=headers, reason=b"Bad Request")
                for event in (answer, h11.Data(data=NOT_HTTP), h11.EndOfMessage()):
                    self.transport.write(self.conn.send(event) or b"")
            self._linger()

        def _linger(self) -> None:
            """End the answers, and drop what comes until the client closes or has had its time."""
            if self.cycle is not None and not self.cycle.response_complete:
                self.cycle.disconnected = True  # the app need not wait for the rest of its body
                self.cycle.message_event.set()
            self._dropped_bytes = 0
            self.flow.resume_reading()
            if self.transport.can_write_eof() and not self.transport.is_closing():
                self.transport.write_eof()
            self.loop.call_later(LINGER_S, self.transport.abort)

        def _note_idle(self) -> None:
            idle.pop(self, None)
            idle[self] = None

        def _limit_headers(self) -> None:
            self.loop.call_later(header_timeout_s, self._close_unless_begun, self.cycle)

        def _close_unless_begun(self, last: object) -> None:
            if self.cycle is last and not self.transport.is_closing():
                self.transport.close()

    def _close_one(idle: dict[Protocol, None]) -> bool:
        """Close the connection that has been idle for longest. False if all are at work."""
        while idle:
            first = next(iter(idle))
            del idle[first]
            if first.is_idle:
                first.transport.abort()
                return True
        return False

    return Protocol
