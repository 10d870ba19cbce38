"""HTTP/1.1 connections: how many are open, how long they may be silent, how fast they are read.

This is Uvicorn's protocol with limits that it lacks. Every connection takes a file descriptor, and
a process without free descriptors can open no file and accept nobody. So a connection beyond the
limit replaces the one that has been idle for longest. What is not HTTP is answered, and what the
client still sends is read and dropped for a moment: if the connection were closed at once, the
kernel would reset it, and the client would lose the answer.

A client whose requests take too much work (parser.py) is not read for a moment, so that the kernel
makes it wait.
"""

from __future__ import annotations

import asyncio
import errno
import json
from asyncio import AbstractEventLoop, BaseTransport
from typing import Any, ClassVar, Final, cast

import h11
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.http.clients import client_of
from service.http.parser import EventRateLimit, LimitedParser
from service.http.problems import BAD_REQUEST, MEDIA_TYPE
from service.http.transports import PausableFlow, ResponseTransport
from service.logs import RareWarning
from service.settings import MIB, Settings

BACKLOG: Final = 512
"""Connections that the kernel queues before they are accepted."""

ACCEPTED_AT_ONCE: Final = 32
"""Connections that asyncio accepts before the first of them can be refused."""

HEAD_READ_BYTES: Final = 16 * 1024
"""Most bytes of one read where a request's headers are expected: they are parsed at once."""

BODY_READ_BYTES: Final = 64 * 1024
"""Most bytes of one read while a body arrives."""

BODY_READ_EVENTS: Final = 4
"""Events that a read of a body counts as, because the app handles it."""

LINGER_S: Final = 5.0
LINGER_BYTES: Final = 16 * MIB
"""Seconds and bytes of what is dropped of a client whose request was refused."""

OUT_OF_RESOURCES: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

NOT_HTTP: Final = json.dumps(
    {
        "type": BAD_REQUEST.type,
        "title": BAD_REQUEST.title,
        "status": BAD_REQUEST.status,
        "detail": "This is not HTTP/1.1, or its headers are too long or too many.",
    }
).encode()
"""Answer to bytes that are no request and so never reach the app."""


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


def limited_protocol(settings: Settings) -> type[H11Protocol]:
    """Uvicorn's HTTP/1.1 protocol with limits on connections, on their times and on their work.

    A connection is closed `header_timeout_s` after it was opened, or after the first byte that
    follows an answer, if no request has begun by then, however many bytes arrive. Between an answer
    and that byte Uvicorn's own limit holds. A connection whose client reads its answer at less than
    `min_bytes_per_s` is closed once it is `stall_timeout_s` late.
    """

    class Protocol(LimitedProtocol):
        shared = _SharedState(settings)

    return Protocol


class _SharedState:
    """What all connections of one server share.

    Attributes:
        idle: connections by the time since which they may be idle, the longest first.
        buffer: what was read last; one for all, because it is used before anything else is read.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.idle: dict[LimitedProtocol, None] = {}
        self.warn_full = RareWarning("connections are at their limit")
        self.rate_limit = EventRateLimit()
        self.buffer = memoryview(bytearray(BODY_READ_BYTES))

    def close_idle(self) -> bool:
        """Close the connection that has been idle for longest. False if all have requests."""
        while self.idle:
            first = next(iter(self.idle))
            del self.idle[first]
            if first.is_idle:
                first.transport.abort()
                return True
        return False


class LimitedProtocol(H11Protocol, asyncio.BufferedProtocol):
    """One connection of a server."""

    shared: ClassVar[_SharedState]

    _answered = False
    """Whether an answer is the last thing that happened."""

    _dropped_bytes: int | None = None
    """Bytes dropped of what the client still sends; None while they are read."""

    _stall_timer: asyncio.TimerHandle | None = None
    """Checks whether the client has read, while there is something to read."""

    @property
    def is_idle(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: BaseTransport) -> None:
        """Take the connection, and close an idle one if there are too many."""
        shared, settings = self.shared, self.shared.settings
        self.conn: LimitedParser = LimitedParser()
        super().connection_made(cast(asyncio.Transport, transport))
        self.flow: PausableFlow = PausableFlow(self.transport)
        self.transport.set_write_buffer_limits(0)  # so `pause_writing` is called for any byte
        self._response_transport = ResponseTransport(self.transport, self._close_answered)
        host = self.client[0] if self.client else None
        # Requests of many clients come through a proxy: each of its connections counts alone.
        is_proxy = isinstance(self.app, ProxyHeadersMiddleware) and host in self.app.trusted_hosts
        is_many = is_proxy or host is None
        self._rate_key = f"connection {id(self)}" if is_many else client_of(host)
        if len(self.connections) > settings.connection_limit:
            shared.warn_full(limit=settings.connection_limit)
            if not shared.close_idle():
                self.transport.abort()
        self._mark_idle()
        self._limit_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self.shared.idle.pop(self, None)
        if self._stall_timer is not None:
            self._stall_timer.cancel()
        super().connection_lost(exc)

    def get_buffer(self, sizehint: int) -> memoryview:
        del sizehint
        return self.shared.buffer[: HEAD_READ_BYTES if self.is_idle else BODY_READ_BYTES]

    def buffer_updated(self, nbytes: int) -> None:
        self.data_received(bytes(self.shared.buffer[:nbytes]))

    def data_received(self, data: bytes) -> None:
        """Parse bytes, or drop them where the request was refused."""
        self._charge(1 if self.is_idle else BODY_READ_EVENTS)
        if self._dropped_bytes is None:
            if self._answered:
                self._answered = False
                self._limit_headers()
            super().data_received(data)
            return
        self._dropped_bytes += len(data)
        if self._dropped_bytes > LINGER_BYTES:
            self.transport.abort()

    def handle_events(self) -> None:
        """Parse what has arrived, within the limits of a turn and of the client's rate."""
        if not self._pause_s():
            self.conn.begin_turn()
            super().handle_events()
            if self.cycle is not None:
                self.cycle.transport = self._response_transport
            self._charge(self.conn.events)
        pause_s = self._pause_s()
        if pause_s or self.conn.is_stopped:
            self._pause(pause_s)

    def _charge(self, events: int) -> None:
        self.shared.rate_limit.charge(self._rate_key, events, self.loop.time())

    def _pause_s(self) -> float:
        return self.shared.rate_limit.pause_s(self._rate_key, self.loop.time())

    def _pause(self, seconds: float) -> None:
        if not self.flow.is_paused and not self.transport.is_closing():
            self.flow.pause()
            self.loop.call_later(seconds, self._resume)

    def _resume(self) -> None:
        if not self.transport.is_closing():
            self.flow.resume()
            if self._dropped_bytes is None:
                self.handle_events()

    def on_response_complete(self) -> None:
        self._answered = True
        self._mark_idle()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Watch whether the client reads what was not sent yet."""
        super().pause_writing()
        self._start_stall_timer()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stall_timer is not None:
            self._stall_timer.cancel()

    def _start_stall_timer(self) -> None:
        unsent_bytes = self.transport.get_write_buffer_size()
        delay_s = self.shared.settings.stall_timeout_s
        self._stall_timer = self.loop.call_later(delay_s, self._close_stalled, unsent_bytes)

    def _close_stalled(self, unsent_before_bytes: int) -> None:
        """Close the connection unless its client has read enough since the timer was started."""
        settings = self.shared.settings
        enough = max(1, settings.min_bytes_per_s * settings.stall_timeout_s)
        if self.transport.get_write_buffer_size() > max(0, unsent_before_bytes - enough):
            self.transport.abort()
        else:
            self._start_stall_timer()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP by a problem document."""
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

    def _close_answered(self) -> None:
        """Close the connection, at once unless the client is still sending its body."""
        if self.conn.their_state is h11.SEND_BODY:
            self._linger()
        else:
            self.transport.close()

    def _linger(self) -> None:
        """End the answers, and drop what arrives until the client closes or the time is over."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # the app need not wait for the rest of its body
            self.cycle.message_event.set()
        self._dropped_bytes = 0
        self.flow.resume_reading()
        if self.transport.can_write_eof() and not self.transport.is_closing():
            self.transport.write_eof()
        self.loop.call_later(LINGER_S, self.transport.abort)

    def _mark_idle(self) -> None:
        self.shared.idle.pop(self, None)
        self.shared.idle[self] = None

    def _limit_headers(self) -> None:
        delay_s = self.shared.settings.header_timeout_s
        self.loop.call_later(delay_s, self._close_unless_begun, self.cycle)

    def _close_unless_begun(self, last: object) -> None:
        if self.cycle is last and not self.transport.is_closing():
            self.transport.close()
