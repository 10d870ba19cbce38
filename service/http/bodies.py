"""Request bodies: raw bytes, or the field `file` of multipart/form-data, into one bytes object.

Everything is limited while it arrives, whatever Content-Length says: the bytes of one body, those
of one client and of all, the bytes a second and the seconds in all. Multipart is parsed as it
streams; the one part that is kept goes straight to its buffer, any other part is refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Message

from service.engine.admission import Admission
from service.errors import BadParameter, TooManyBytes
from service.http.holds import ArrivingBody, ClientHold
from service.settings import Settings

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

FIELD = "file"
MAX_PART_HEADER_BYTES = 8 * 1024


async def read_body(
    request: Request, admission: Admission, hold: ClientHold, settings: Settings
) -> bytes:
    """The whole body, or the content of its part `file` when it is multipart/form-data.

    Raises:
        TooManyBytes: more than `max_body_bytes`, declared or sent.
        Saturated: the queue is full, or the bytes of the client or of all exceed their limit.
        BadParameter: a multipart body without exactly the part `file`.
        HTTPException: 400 malformed multipart, 408 too slow, 415 has a content coding.
        ClientDisconnect: the client left.
    """
    _refuse_coding(request)
    declared = _declared_bytes(request)
    if declared > settings.max_body_bytes:
        raise TooManyBytes(
            f"Content-Length is {declared}, expected at most {settings.max_body_bytes} bytes"
        )
    admission.check(declared)
    hold.check(declared)
    kind, options = parse_options_header(request.headers.get("content-type"))
    with ArrivingBody(hold) as body:
        if kind == b"multipart/form-data":
            form = _Form(options.get(b"boundary", b""), body)
            await _receive(request, form.write, body, hold, settings)
            form.finish()
        else:
            await _receive(request, body.write, body, hold, settings)
        return await body.read()


def _refuse_coding(request: Request) -> None:
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("", "identity"):
        raise HTTPException(
            415, "the body has a Content-Encoding, expected none", {"Accept-Encoding": "identity"}
        )


def _declared_bytes(request: Request) -> int:
    declared = request.headers.get("content-length", "0").strip()
    if not (declared.isascii() and declared.isdigit()) or len(declared) > 18:
        raise HTTPException(400, "Content-Length is not a number of bytes")
    return int(declared)


async def _receive(
    request: Request,
    write: Callable[[bytes], object],
    body: ArrivingBody,
    hold: ClientHold,
    settings: Settings,
) -> None:
    """Pass what arrives to `write` piece by piece, within the limits of bytes and time."""
    clock = _Patience(settings, asyncio.get_running_loop().time)
    received = 0
    more = True
    while more:
        message = await _next_message(request, clock.left_s())
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        piece: bytes = message.get("body", b"")
        more = message.get("more_body", False)
        received += len(piece)
        if received > settings.max_body_bytes:
            raise TooManyBytes(f"the body has more than {settings.max_body_bytes} bytes")
        clock.note(len(piece))
        hold.grow(len(piece))
        write(piece)
        await body.settle()
        clock.go_on()


class _Patience:
    """How long a body is still waited for.

    A client is behind by the seconds that it has taken beyond those that its bytes may take at
    `min_bytes_per_s`. Bytes that came faster than that give it no time for later.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float]) -> None:
        self._settings, self._clock = settings, clock
        self._since_s = clock()
        self._end_s = self._since_s + settings.body_timeout_s
        self._behind_s = 0.0

    def left_s(self) -> float:
        """Seconds that the next bytes may take."""
        left_s = self._settings.stall_timeout_s - self._behind_s
        return min(left_s, self._end_s - self._clock())

    def note(self, received: int) -> None:
        """Bytes have come."""
        rate = self._settings.min_bytes_per_s
        if rate == 0:
            self._behind_s = 0.0
        else:
            took_s = self._clock() - self._since_s
            self._behind_s = max(0.0, self._behind_s + took_s - received / rate)

    def go_on(self) -> None:
        """Wait for the next bytes from now on: what was done with the last is not the client's."""
        self._since_s = self._clock()


async def _next_message(request: Request, seconds: float) -> Message:
    try:
        async with asyncio.timeout(seconds):
            return await request.receive()
    except TimeoutError:
        # The rest of the body may never come, so the connection is of no more use.
        detail = "the body came too slowly, or not at all"
        raise HTTPException(408, detail, {"Connection": "close"}) from None


class _Form:
    """Passes on the content of the part `file` of a multipart body."""

    def __init__(self, boundary: bytes, content: ArrivingBody) -> None:
        if not boundary:
            raise HTTPException(400, "the multipart body has no boundary")
        self._content = content
        self._begun = False
        self._ended = False
        self._begin_part()
        callbacks: MultipartCallbacks = {
            "on_part_begin": self._begin_part,
            "on_header_field": self._add_header_name,
            "on_header_value": self._add_header_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": self._add_content,
            "on_end": self._end,
        }
        try:
            self._parser = MultipartParser(boundary, callbacks)
        except FormParserError:
            raise HTTPException(400, "the multipart boundary is malformed") from None

    def write(self, piece: bytes) -> None:
        """Take the next bytes of the body."""
        try:
            self._parser.write(piece)
        except FormParserError:
            raise HTTPException(400, "the multipart body is malformed") from None

    def finish(self) -> None:
        """Raise unless the bytes that were written are a whole form."""
        if not self._ended:
            raise HTTPException(400, "the multipart body ends before its last boundary")
        if not self._begun:
            raise BadParameter(f"the multipart body has no part named {FIELD!r}")

    def _begin_part(self) -> None:
        self._header_bytes = 0
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._disposition = ""

    def _add_header_name(self, data: bytes, start: int, end: int) -> None:
        self._count_header(end - start)
        self._header_name += data[start:end]

    def _add_header_value(self, data: bytes, start: int, end: int) -> None:
        self._count_header(end - start)
        self._header_value += data[start:end]

    def _count_header(self, more_bytes: int) -> None:
        self._header_bytes += more_bytes
        if self._header_bytes > MAX_PART_HEADER_BYTES:
            raise HTTPException(400, "the headers of a multipart part are too long")

    def _end_header(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = self._header_value.decode("latin-1")
        self._header_name.clear()
        self._header_value.clear()

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if name != FIELD:
            raise BadParameter(
                f"the multipart body has a part named {name[:100]!r}, expected only {FIELD!r}; "
                "everything else is a query parameter"
            )
        if self._begun:
            raise BadParameter(f"the multipart body has more than one part named {FIELD!r}")
        self._begun = True

    def _add_content(self, data: bytes, start: int, end: int) -> None:
        self._content.write(memoryview(data)[start:end])

    def _end(self) -> None:
        self._ended = True
