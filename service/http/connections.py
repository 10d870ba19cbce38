"""HTTP/1.1 connections: how many there are, how long they may be silent, how much work they are.

Uvicorn's protocol with limits that it does not have. Every connection takes a file descriptor, and
a process without free descriptors can open no file and accept nobody. So a connection beyond the
limit takes the place of the one that has been idle for longest. What is not HTTP is answered, and
what the client still sends is read and dropped for a moment: if the connection were closed at once,
the kernel would reset it, and the client would lose the answer.

A body in chunks of one byte is as much work for the event loop as one a thousand times larger. So
what is parsed in one turn of the loop is limited, and what is parsed of one client in a second:
beyond that its connections are not read for a moment, and the kernel makes the client wait.
"""

from __future__ import annotations

import asyncio
import errno
import json
import re
from asyncio import AbstractEventLoop, BaseTransport
from collections.abc import Callable
from typing import Any, Final, cast

import h11
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.http.clients import addresses_in, client_of
from service.http.problems import BAD_REQUEST, MEDIA_TYPE
from service.logs import RareWarning
from service.settings import MIB, Settings

BACKLOG: Final = 512
"""Connections the kernel queues before they are accepted."""

ACCEPTED_AT_ONCE: Final = 32
"""Connections that asyncio accepts before the first of them can be refused."""

HEAD_READ_BYTES: Final = 16 * 1024
"""Most bytes of one read where a request's headers are expected: they are parsed in one go."""

BODY_READ_BYTES: Final = 64 * 1024
"""Most bytes of one read while a body arrives."""

EVENTS_A_TURN: Final = 64
"""Events of HTTP (a head, a piece of a body, an end) parsed of a connection in a turn of the loop.

One takes about 20 µs, so that a turn of one connection takes little more than a millisecond."""

EVENTS_PER_S: Final = 10_000
"""Events parsed of one client in a second: about a fifth of what one core can."""

BURST_EVENTS: Final = 1000
"""Events that a client which was quiet may be ahead of that rate."""

BODY_READ_EVENTS: Final = 4
"""Events that a read of a body counts as, because the app takes it up."""

MOST_HEADERS: Final = 128
"""Headers of one request."""

HEADERS_AN_EVENT: Final = 8
"""Headers that count as one more event; there may be thousands behind a chunked body."""

HEAD_END: Final = re.compile(rb"\n\r?\n")

MOST_PACES: Final = 10_000
"""Clients that are remembered at a time, those that have to rest aside."""

LINGER_S: Final = 5.0
LINGER_BYTES: Final = 16 * MIB
"""What a client may go on sending, for so long, after it was told that it does not speak HTTP."""

OUT_OF_RESOURCES: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

NOT_HTTP: Final = json.dumps(
    {
        "type": BAD_REQUEST.type,
        "title": BAD_REQUEST.title,
        "status": BAD_REQUEST.status,
        "detail": "This is not HTTP/1.1, or its headers are too long or too many.",
    }
).encode()
"""Answer to what never becomes a request and so never reaches the app."""


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


class WorkPace:
    """How far each client's events of HTTP are ahead of `EVENTS_PER_S`."""

    def __init__(self) -> None:
        self._free_s: dict[str, float] = {}

    def charge(self, client: str, events: int, now_s: float) -> None:
        """Count events of a client."""
        if len(self._free_s) > MOST_PACES:
            self._forget(now_s)
        behind_s = now_s - BURST_EVENTS / EVENTS_PER_S
        self._free_s[client] = max(self._free_s.get(client, 0.0), behind_s) + events / EVENTS_PER_S

    def rest_s(self, client: str, now_s: float) -> float:
        """Seconds in which nothing more should be parsed of a client; 0 if something may be."""
        return max(0.0, self._free_s.get(client, 0.0) - now_s)

    def _forget(self, now_s: float) -> None:
        """Forget the clients whose events were paid for."""
        self._free_s = {client: s for client, s in self._free_s.items() if s > now_s}


class _MeteredConnection(h11.Connection):
    """A parser that stops after `EVENTS_A_TURN` events and counts what it has parsed."""

    def __init__(self, max_head_bytes: int) -> None:
        super().__init__(h11.SERVER, max_head_bytes)
        self.begin_turn()

    def begin_turn(self) -> None:
        """Allow as many events as a turn of the loop may have."""
        self.events = 0
        self.stopped = False
        """Whether there may be more to parse than this turn allows."""

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """As h11's own; NEED_DATA also where the turn has had its events."""
        if self.events >= EVENTS_A_TURN:
            self.stopped = True
            return h11.NEED_DATA
        if self.their_state is h11.IDLE:
            self._check_head()
        event = super().next_event()
        if event not in (h11.NEED_DATA, h11.PAUSED):
            self.events += 1
        if isinstance(event, h11.Request | h11.EndOfMessage):
            self.events += len(event.headers) // HEADERS_AN_EVENT
        return event

    def _check_head(self) -> None:
        """Raise RemoteProtocolError for too many headers: they are counted faster than parsed."""
        unparsed, _ = self.trailing_data
        end = HEAD_END.search(unparsed)
        if unparsed.count(b"\n", 0, end.start() if end else len(unparsed)) > MOST_HEADERS:
            raise h11.RemoteProtocolError("too many headers", error_status_hint=431)


class _RestingFlow(FlowControl):
    """Uvicorn's flow control, of a connection that has to rest at times."""

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__(transport)
        self._reading = transport
        self.is_resting = False

    def rest(self) -> None:
        """Read nothing until `wake`."""
        self.is_resting = True
        self._reading.pause_reading()

    def wake(self) -> None:
        """Read again, unless Uvicorn does not want to."""
        self.is_resting = False
        if not self.read_paused:
            self._reading.resume_reading()

    def resume_reading(self) -> None:
        """Read again, unless the connection rests."""
        super().resume_reading()
        if self.is_resting:
            self._reading.pause_reading()


class _AnswerTransport(asyncio.Transport):
    """What an answer is written to: closes the connection as its protocol wants it closed."""

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        super().__init__()
        self._transport, self._close = transport, close

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes."""
        self._transport.write(data)

    def is_closing(self) -> bool:
        """Whether the connection is closed or about to be."""
        return self._transport.is_closing()

    def close(self) -> None:
        """End the connection once all has been sent."""
        self._close()


def limited_protocol(settings: Settings, max_head_bytes: int) -> type[H11Protocol]:
    """Uvicorn's HTTP/1.1 protocol with limits on connections, on their times and on their work.

    A connection on which no request has begun `header_timeout_s` after it was opened, or after the
    first byte that follows an answer, is closed, however many bytes trickle in. Between an answer
    and that byte Uvicorn's own limit holds. One whose client reads its answer at less than
    `min_bytes_per_s` is closed once it is `stall_timeout_s` behind. What is not HTTP is answered by
    a problem document too.

    Args:
        max_head_bytes: of a request line and its headers together.
    """
    idle: dict[Protocol, None] = {}
    """Connections by the time since which they may be idle, the longest first."""

    crowded = RareWarning("connections are at their limit")
    paces = WorkPace()
    buffer = memoryview(bytearray(BODY_READ_BYTES))
    """What was read last; one for all, because it is taken up before anything else is read."""

    is_proxy = addresses_in(settings.forwarded_allow_ips)

    class Protocol(H11Protocol, asyncio.BufferedProtocol):
        _answered = False
        """Whether the last thing that happened was an answer."""

        _dropped_bytes: int | None = None
        """Bytes dropped of what the client still sends; None while they are read."""

        _unsent: asyncio.TimerHandle | None = None
        """Looks whether the client has read, while there is something to read."""

        @property
        def is_idle(self) -> bool:
            """Whether there is no request at work."""
            return self.cycle is None or self.cycle.response_complete

        def connection_made(self, transport: BaseTransport) -> None:
            self.conn: _MeteredConnection = _MeteredConnection(max_head_bytes)
            super().connection_made(cast(asyncio.Transport, transport))
            self.flow: _RestingFlow = _RestingFlow(self.transport)
            self.transport.set_write_buffer_limits(0)  # `pause_writing` tells of any unsent byte
            host = self.client[0] if self.client else None
            # Everybody's requests come through a proxy, so it is not one client.
            shared = host is not None and not is_proxy(host)
            self._answers_to = _AnswerTransport(self.transport, self._close_answered)
            self._pace_as = client_of(host) if shared else f"connection {id(self)}"
            if len(self.connections) > settings.connection_limit:
                crowded(limit=settings.connection_limit)
                if not _close_one(idle):
                    self.transport.abort()
            self._note_idle()
            self._limit_headers()

        def connection_lost(self, exc: Exception | None) -> None:
            idle.pop(self, None)
            if self._unsent is not None:
                self._unsent.cancel()
            super().connection_lost(exc)

        def get_buffer(self, sizehint: int) -> memoryview:
            del sizehint
            return buffer[: HEAD_READ_BYTES if self.is_idle else BODY_READ_BYTES]

        def buffer_updated(self, nbytes: int) -> None:
            self.data_received(bytes(buffer[:nbytes]))

        def data_received(self, data: bytes) -> None:
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
            """Parse what has come, within the limits of a turn and of the client's pace."""
            if not self._must_rest_s():
                self.conn.begin_turn()
                super().handle_events()
                if self.cycle is not None:
                    self.cycle.transport = self._answers_to
                self._charge(self.conn.events)
            rest_s = self._must_rest_s()
            if rest_s or self.conn.stopped:
                self._rest(rest_s)

        def _charge(self, events: int) -> None:
            paces.charge(self._pace_as, events, self.loop.time())

        def _must_rest_s(self) -> float:
            return paces.rest_s(self._pace_as, self.loop.time())

        def _rest(self, seconds: float) -> None:
            if not self.flow.is_resting and not self.transport.is_closing():
                self.flow.rest()
                self.loop.call_later(seconds, self._wake)

        def _wake(self) -> None:
            if not self.transport.is_closing():
                self.flow.wake()
                if self._dropped_bytes is None:
                    self.handle_events()

        def on_response_complete(self) -> None:
            self._answered = True
            self._note_idle()
            super().on_response_complete()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._watch_unsent()

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._unsent is not None:
                self._unsent.cancel()

        def _watch_unsent(self) -> None:
            size = self.transport.get_write_buffer_size()
            self._unsent = self.loop.call_later(settings.stall_timeout_s, self._close_stalled, size)

        def _close_stalled(self, before_bytes: int) -> None:
            """Close the connection, unless its client has read enough since a while ago."""
            enough = max(1, settings.min_bytes_per_s * settings.stall_timeout_s)
            if self.transport.get_write_buffer_size() > max(0, before_bytes - enough):
                self.transport.abort()
            else:
                self._watch_unsent()

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

        def _close_answered(self) -> None:
            """Close the connection, at once unless the client is still sending its body."""
            if self.conn.their_state is h11.SEND_BODY:
                self._linger()
            else:
                self.transport.close()

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
            self.loop.call_later(settings.header_timeout_s, self._close_unless_begun, self.cycle)

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
