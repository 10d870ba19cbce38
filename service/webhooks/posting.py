"""One HTTP request to a receiver that is not trusted.

The connection goes to an address that was checked, by no proxy, and TLS is checked against the
name. Redirects are not followed. Of the answer only the status and headers are read, and both the
bytes and the seconds of it all are bounded.
"""

from __future__ import annotations

import http.client
import io
import socket
import ssl
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any, Final

from service.errors import RankpressError
from service.webhooks.addresses import Destination, ForbiddenAddress, SocketAddress, resolve

CONNECT_S: Final = 5.0
"""Seconds that a connection to one address may take."""

TOTAL_S: Final = 15.0
"""Seconds that a request may take from its beginning, with connection and answer."""

MAX_ANSWER_BYTES: Final = 16 * 1024
"""Bytes of an answer's status line and headers; the body is not read."""


class PostFailed(RankpressError):
    """A request got no answer; the message names nothing that the receiver sent."""


@dataclass(frozen=True)
class Answer:
    """What a receiver answered: the HTTP status, and the seconds after which to try again."""

    status: int
    retry_after_s: float | None


def post(
    destination: Destination,
    body: bytes,
    headers: Mapping[str, str],
    tls: ssl.SSLContext,
    *,
    allow_private: bool = False,
    total_s: float = TOTAL_S,
) -> Answer:
    """Send a body and return the answer, whatever its status.

    Args:
        tls: checks certificates and names. allow_private: whether any address will do.
        total_s: seconds for all of it, besides those of the resolver.

    Raises:
        PostFailed: there is no answer, or the address is forbidden.
    """
    try:
        addresses = resolve(destination.host, destination.port, allow_private=allow_private)
        deadline_s = time.monotonic() + total_s
        with closing(_connect(destination, addresses, tls, deadline_s)) as connected:
            return _exchange(destination, body, headers, BoundedSocket(connected, deadline_s))
    except ForbiddenAddress as error:
        raise PostFailed(str(error)) from error
    except http.client.HTTPException as error:  # its text may be the receiver's
        raise PostFailed(f"the answer is not HTTP ({type(error).__name__})") from error
    except OSError as error:
        raise PostFailed(f"{type(error).__name__}: {error.strerror or error}") from error


class BoundedSocket:
    """A connection as `http.client` uses it, whose reader is bounded in bytes and time."""

    def __init__(self, connected: socket.socket, deadline_s: float) -> None:
        self._socket, self._deadline_s = connected, deadline_s

    def sendall(self, data: bytes) -> None:
        """Send all, or raise TimeoutError at the deadline."""
        self._socket.settimeout(seconds_until(self._deadline_s))
        self._socket.sendall(data)

    def makefile(self, *_: Any) -> io.BufferedReader:
        """A reader of what the receiver sends."""
        return io.BufferedReader(BoundedReader(self._socket, self._deadline_s))

    def close(self) -> None:
        """Do nothing: whoever opened the connection closes it."""


class BoundedReader(io.RawIOBase):
    """Reads at most `MAX_ANSWER_BYTES` from a connection, until a deadline."""

    def __init__(self, connected: socket.socket, deadline_s: float) -> None:
        self._socket, self._deadline_s = connected, deadline_s
        self._left_bytes = MAX_ANSWER_BYTES

    def readable(self) -> bool:
        """True, as BufferedReader requires."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what is there. Raises OSError: there is too much, or the time is over."""
        if not self._left_bytes:
            raise OSError(f"the headers of the answer have more than {MAX_ANSWER_BYTES} bytes")
        self._socket.settimeout(seconds_until(self._deadline_s))
        count = self._socket.recv_into(memoryview(buffer)[: self._left_bytes])
        self._left_bytes -= count
        return count


def seconds_until(deadline_s: float) -> float:
    """Seconds until a time of the monotonic clock. Raises TimeoutError: it is over."""
    seconds = deadline_s - time.monotonic()
    if seconds <= 0:
        raise TimeoutError("the receiver took too long")
    return seconds


def _connect(
    destination: Destination,
    addresses: Sequence[SocketAddress],
    tls: ssl.SSLContext,
    deadline_s: float,
) -> socket.socket:
    """A connection to the first of some addresses that accepts one. Raises OSError."""
    refusal = OSError("the host has no address")
    for family, address in addresses:
        connected = socket.socket(family, socket.SOCK_STREAM)
        try:
            connected.settimeout(min(CONNECT_S, seconds_until(deadline_s)))
            connected.connect(address)
        except OSError as error:
            connected.close()
            refusal = error
            continue
        if destination.is_secure:
            return _secured(connected, destination, tls, deadline_s)
        return connected
    raise refusal


def _secured(
    connected: socket.socket, destination: Destination, tls: ssl.SSLContext, deadline_s: float
) -> socket.socket:
    """The connection with TLS, whose certificate is of the destination's name. Raises OSError."""
    try:
        connected.settimeout(seconds_until(deadline_s))
        return tls.wrap_socket(connected, server_hostname=destination.host.removesuffix("."))
    except OSError:
        connected.close()
        raise


def _exchange(
    destination: Destination, body: bytes, headers: Mapping[str, str], bounded: BoundedSocket
) -> Answer:
    connection = http.client.HTTPConnection(destination.host)
    connection.sock = bounded  # so it makes no connection of its own
    everything = {"Host": destination.authority, **headers, "Connection": "close"}
    connection.request("POST", destination.path, body, everything)
    answer = connection.getresponse()
    return Answer(answer.status, _seconds_after(answer.headers.get("Retry-After")))


def _seconds_after(text: str | None) -> float | None:
    """The seconds that a Retry-After header names, as a number or a date; None for none."""
    if text is None:
        return None
    if text.isascii() and text.isdecimal():
        return float(text[:10])
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max(0.0, date.timestamp() - time.time())
