"""Parsing of HTTP/1.1 with limits on the work of one turn of the event loop and of one client.

A body in chunks of one byte is as much work for the event loop as a body a thousand times larger.
So the number of HTTP events (a head, a piece of a body, an end) is limited for each turn of the
loop, and for each client in a second.
"""

from __future__ import annotations

import re
from typing import Final

import h11

EVENTS_PER_TURN: Final = 64
"""Events parsed of one connection in a turn of the loop.

An event takes about 20 µs, so that a turn of one connection takes little more than a millisecond.
"""

EVENTS_PER_S: Final = 10_000
"""Events parsed of one client in a second: about a fifth of what one core can parse."""

BURST_EVENTS: Final = 1000
"""Events that a client may use at once, beyond its rate, after it was quiet."""

MAX_HEAD_BYTES: Final = 32 * 1024
"""Request line and headers together."""

MAX_HEADERS: Final = 128
"""Headers of one request."""

HEADERS_PER_EVENT: Final = 8
"""Headers that count as one more event; thousands may follow a chunked body."""

HEAD_END: Final = re.compile(rb"\n\r?\n")

MAX_CLIENTS: Final = 10_000
"""Clients that are remembered at a time, besides those that have to pause."""


class EventRateLimit:
    """Limits the HTTP events of each client to `EVENTS_PER_S`."""

    def __init__(self) -> None:
        self._paid_until_s: dict[str, float] = {}

    def charge(self, client: str, events: int, now_s: float) -> None:
        """Count events of a client."""
        if len(self._paid_until_s) > MAX_CLIENTS:
            self._forget_old(now_s)
        earliest_s = now_s - BURST_EVENTS / EVENTS_PER_S
        start_s = max(self._paid_until_s.get(client, 0.0), earliest_s)
        self._paid_until_s[client] = start_s + events / EVENTS_PER_S

    def pause_s(self, client: str, now_s: float) -> float:
        """Seconds in which nothing more of a client should be parsed; 0 if it may go on now."""
        return max(0.0, self._paid_until_s.get(client, 0.0) - now_s)

    def _forget_old(self, now_s: float) -> None:
        """Forget the clients that do not have to pause."""
        self._paid_until_s = {c: s for c, s in self._paid_until_s.items() if s > now_s}


class LimitedParser(h11.Connection):
    """A parser that stops after `EVENTS_PER_TURN` events and counts what it has parsed.

    Attributes:
        events: parsed in this turn.
        is_stopped: whether there may be more to parse than this turn allows.
    """

    def __init__(self) -> None:
        super().__init__(h11.SERVER, MAX_HEAD_BYTES)
        self.begin_turn()

    def begin_turn(self) -> None:
        """Allow as many events as a turn of the loop may have."""
        self.events = 0
        self.is_stopped = False

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """Parse the next event; return NEED_DATA also where the turn has had all its events."""
        if self.events >= EVENTS_PER_TURN:
            self.is_stopped = True
            return h11.NEED_DATA
        if self.their_state is h11.IDLE:
            self._check_head()
        event = super().next_event()
        if event not in (h11.NEED_DATA, h11.PAUSED):
            self.events += 1
        if isinstance(event, h11.Request | h11.EndOfMessage):
            self.events += len(event.headers) // HEADERS_PER_EVENT
        return event

    def _check_head(self) -> None:
        """Raise RemoteProtocolError for too many headers: counting is quicker than parsing."""
        unparsed, _ = self.trailing_data
        end = HEAD_END.search(unparsed)
        if unparsed.count(b"\n", 0, end.start() if end else len(unparsed)) > MAX_HEADERS:
            raise h11.RemoteProtocolError("too many headers", error_status_hint=431)
