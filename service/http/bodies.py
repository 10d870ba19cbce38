"""Request bodies: raw bytes, or the field `file` of multipart/form-data, into one bytes object.

Everything is limited while it arrives, whatever Content-Length says: the bytes of one body, of one
client and of all clients, the bytes per second and the seconds in all. Multipart is parsed while it
arrives: the content of the part `file` goes straight to a buffer, and any other part is refused.
What has arrived is in memory at first, then in a file, and is read back once it is complete.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from functools import partial
from typing import IO, TYPE_CHECKING

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from service.engine.admission import Admission
from service.errors import BadParameter, TooManyBytes
from service.http.context import RequestBytes, context_of
from service.http.spool import SPOOLED_BYTES
from service.settings import Settings

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

FIELD = "file"
MAX_PART_HEADERS = 16
MAX_PART_HEADER_BYTES = 8 * 1024
"""Of one header."""


async def read_body(request: Request, admission: Admission, settings: Settings) -> bytes:
    """Read the whole body, or the content of its part `file` when it is multipart/form-data.

    Raises:
        TooManyBytes: more than `max_body_bytes`, declared or sent.
        Saturated: the queue is full, or the bytes of the client or of all exceed their limit.
        BadParameter: a multipart body has other parts than one named `file`.
        HTTPException: 400 for malformed multipart, 408 for a slow client, 415 for a content coding.
        ClientDisconnect: the client closed the connection.
    """
    _refuse_coding(request)
    declared, max_bytes = _declared_bytes(request), settings.max_body_bytes
    if declared > max_bytes:
        raise TooManyBytes(f"Content-Length is {declared}, expected at most {max_bytes} bytes")
    request_bytes = context_of(request.scope).bytes
    admission.check(declared)
    request_bytes.check(declared)
    kind, options = parse_options_header(request.headers.get("content-type"))
    form = None
    with BodyBuffer(request_bytes) as body:
        if kind == b"multipart/form-data":
            form = _FormParser(options.get(b"boundary", b""), body)
        write = form.write if form else body.write
        received = 0
        async for piece in _pieces(request, settings):
            received += len(piece)
            if received > max_bytes:
                raise TooManyBytes(f"the body has more than {max_bytes} bytes")
            request_bytes.grow(len(piece))
            write(piece)
            await body.move_to_disk()
        if form:
            form.finish()
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


async def _pieces(request: Request, settings: Settings) -> AsyncIterator[bytes]:
    """The body piece by piece. Raises HTTPException, 408, for a client that is too slow.

    A client is late by the seconds it has taken beyond those that its bytes may take at
    `min_bytes_per_s`. Bytes that arrive faster than that earn no time for later, and the time
    between two pieces in which the server does not wait for the client does not count.
    """
    clock = asyncio.get_running_loop().time
    end_s = clock() + settings.body_timeout_s
    late_s = 0.0
    more = True
    while more:
        started_s = clock()
        remaining_s = min(settings.stall_timeout_s - late_s, end_s - started_s)
        try:
            async with asyncio.timeout(remaining_s):
                message = await request.receive()
        except TimeoutError:
            # The rest of the body may never arrive, so the connection cannot be used again.
            detail = "the body arrived too slowly, or not at all"
            raise HTTPException(408, detail, {"Connection": "close"}) from None
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        piece: bytes = message.get("body", b"")
        more = message.get("more_body", False)
        if settings.min_bytes_per_s:
            earned_s = len(piece) / settings.min_bytes_per_s
            late_s = max(0.0, late_s + clock() - started_s - earned_s)
        yield piece


class BodyBuffer:
    """The bytes of a body that have arrived. Use as a context manager, which drops them."""

    def __init__(self, request_bytes: RequestBytes) -> None:
        self._request_bytes, self._spool = request_bytes, request_bytes.spool
        self._memory = io.BytesIO()
        self._file: IO[bytes] | None = None

    def __enter__(self) -> BodyBuffer:
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._spool.calls.submit(self._file.close)

    def write(self, piece: bytes | memoryview) -> None:
        """Take the next bytes, which are counted already, into memory."""
        self._memory.write(piece)

    async def move_to_disk(self) -> None:
        """Move the bytes in memory to disk if they are many. Raises Saturated: no room."""
        if self._memory.tell() < SPOOLED_BYTES or self._spool.is_off:
            return
        piece = self._memory.getbuffer()
        self._request_bytes.grow_on_disk(len(piece))
        self._memory = io.BytesIO()
        if self._file is None:
            self._file = await self._spool.run(self._spool.open)
        self._request_bytes.add(-await self._spool.run(partial(self._file.write, piece)))

    async def read(self) -> bytes:
        """Return the whole body, in memory. Raises as `RequestBytes.grow`."""
        if self._file is None:
            return self._memory.getvalue()
        self._request_bytes.move_to_memory()
        return await self._spool.run(partial(_read_back, self._file, self._memory.getvalue()))


def _read_back(file: IO[bytes], rest: bytes) -> bytes:
    """Everything that was written to a file, followed by the rest."""
    file.write(rest)
    file.seek(0)
    return file.read()


class _FormParser:
    """Writes the content of the part `file` of a multipart body to a buffer."""

    def __init__(self, boundary: bytes, content: BodyBuffer) -> None:
        if not boundary:
            raise HTTPException(400, "the multipart body has no boundary")
        self._content = content
        self._has_file = False
        self._is_complete = False
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
            self._parser = MultipartParser(
                boundary,
                callbacks,
                max_header_count=MAX_PART_HEADERS,
                max_header_size=MAX_PART_HEADER_BYTES,
            )
        except FormParserError:
            raise HTTPException(400, "the multipart boundary is malformed") from None

    def write(self, piece: bytes) -> None:
        """Parse the next bytes of the body."""
        try:
            self._parser.write(piece)
        except FormParserError:
            raise HTTPException(400, "the multipart body is malformed") from None

    def finish(self) -> None:
        """Raise HTTPException or BadParameter unless the form is complete."""
        if not self._is_complete:
            raise HTTPException(400, "the multipart body ends before its last boundary")
        if not self._has_file:
            raise BadParameter(f"the multipart body has no part named {FIELD!r}")

    def _begin_part(self) -> None:
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._disposition = ""

    def _add_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _add_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

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
        if self._has_file:
            raise BadParameter(f"the multipart body has more than one part named {FIELD!r}")
        self._has_file = True

    def _add_content(self, data: bytes, start: int, end: int) -> None:
        self._content.write(memoryview(data)[start:end])

    def _end(self) -> None:
        self._is_complete = True
