"""Answers with the bytes of a file: whole or in part, from memory or from disk.

A stream of 119 bytes can decode to hundreds of megabytes, and a client that reads slowly should not
keep them in memory. So a large answer is sent from a file without a name, within the time that a
request body may take. If the disk is full, the answer stays in memory, as long as the memory limit
allows that.
"""

from __future__ import annotations

import asyncio
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import IO, Final

from fastapi import Request, Response
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from service.errors import RangeUnsatisfiable, Saturated
from service.http.context import RequestBytes, context_of
from service.http.negotiate import accepts_coding
from service.http.spool import SPOOLED_BYTES, Spool
from service.settings import MIB

PIECE_BYTES: Final = MIB
"""Bytes that are read from the file at a time."""

MAX_TAGS: Final = 100
"""Entity tags of a header that are read; more are ignored."""

_TAG = re.compile(r'(?:W/)?"([\x21\x23-\x7e\x80-\xff]*)"')
_RANGE = re.compile(r"bytes=\s*(\d{0,18})-(\d{0,18})\s*", re.IGNORECASE)


async def bytes_response(
    request: Request, data: bytes, headers: Mapping[str, str], media_type: str, status: int = 200
) -> Response:
    """A response with these bytes, sent from a file if they are many.

    Raises:
        Saturated: neither the disk nor the memory has room for them, in all or for this client.
    """
    if len(data) <= SPOOLED_BYTES:
        return Response(data, status, headers, media_type)
    request_bytes = context_of(request.scope).bytes
    file = await _file_of(request_bytes, data)
    headers = {**headers, "Content-Length": str(len(data))}
    return LargeResponse(file, request_bytes.spool, status, headers, media_type)


@dataclass(frozen=True, eq=False)
class SharedFile:
    """A file that stays in memory for all requests, and so counts for none.

    Attributes:
        sha256: of the data, hex. gzipped: the data in gzip, None where that does not pay.
    """

    data: bytes
    sha256: str
    media_type: str
    gzipped: bytes | None = None

    def response(self, request: Request, headers: Mapping[str, str]) -> Response:
        """The file, in gzip where the client takes it; 304 where If-None-Match names it."""
        if self.gzipped is not None:
            headers = {**headers, "Vary": "Accept-Encoding"}
        known = not_modified_response(request, self.sha256, headers)
        if known is not None:
            return known
        data, own = self.data, {"ETag": f'"{self.sha256}"'}
        if self.gzipped is not None and accepts_coding(
            ",".join(request.headers.getlist("accept-encoding")), "gzip"
        ):
            data = self.gzipped
            own = {"ETag": f'"{self.sha256}-gzip"', "Content-Encoding": "gzip"}
        own["Content-Length"] = str(len(data))
        spool = context_of(request.scope).bytes.spool
        return LargeResponse(io.BytesIO(data), spool, 200, {**headers, **own}, self.media_type)


async def _file_of(request_bytes: RequestBytes, data: bytes) -> IO[bytes]:
    """A file with the bytes, on disk or in memory."""
    spool = request_bytes.spool
    try:
        request_bytes.grow_on_disk(len(data))
        return await spool.run(lambda: _filled(spool.open(), data))
    except Saturated:
        request_bytes.release_disk()
    request_bytes.grow(len(data))
    return io.BytesIO(data)


def _filled(file: IO[bytes], data: bytes) -> IO[bytes]:
    try:
        file.write(data)
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file


class LargeResponse(Response):
    """The bytes of a file, which is closed at the end."""

    def __init__(
        self,
        file: IO[bytes],
        spool: Spool,
        status: int,
        headers: Mapping[str, str],
        media_type: str,
    ) -> None:
        self._file, self._spool = file, spool
        super().__init__(None, status, headers, media_type)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response. Raises ClientDisconnect: the client has not read it in time."""
        del scope, receive
        start = {"type": "http.response.start", "status": self.status_code}
        body = {"type": "http.response.body"}
        try:
            async with asyncio.timeout(self._spool.answer_timeout_s):
                await send(start | {"headers": self.raw_headers})
                while piece := await self._spool.run(partial(self._file.read, PIECE_BYTES)):
                    await send(body | {"body": piece, "more_body": True})
                await send(body)
        except TimeoutError:
            raise ClientDisconnect from None
        finally:
            await self._spool.calls.submit(self._file.close)


def not_modified_response(
    request: Request, tag: str, caching: Mapping[str, str]
) -> Response | None:
    """A 304 if If-None-Match has the tag, alone or before a dash; None otherwise.

    `*` matches any tag.
    """
    header = ",".join(request.headers.getlist("if-none-match"))
    if header.strip() == "*":
        known: str | None = tag
    else:
        known = next((t for t in entity_tags(header) if t.partition("-")[0] == tag), None)
    return None if known is None else Response(None, 304, {**caching, "ETag": f'"{known}"'})


def entity_tags(if_none_match: str) -> list[str]:
    """The entity tags of an If-None-Match header, without quotes and W/ (RFC 9110, section 13)."""
    return [match[1] for match in islice(_TAG.finditer(if_none_match), MAX_TAGS)]


def requested_range(headers: Mapping[str, str], etag: str, size: int) -> range | None:
    """Which bytes of the answer a request wants (RFC 9110, section 14); None for all of them.

    A Range header that is malformed, of another unit or of several ranges is ignored, as a server
    may do, and so is one whose If-Range names another answer.

    Args:
        headers: of the request, names in lower case.
        etag: of the answer, quoted and strong.
        size: bytes of the answer.

    Raises:
        RangeUnsatisfiable: the range lies beyond the end.
    """
    match = _RANGE.fullmatch(headers.get("range", ""))
    if match is None or headers.get("if-range", etag).strip() != etag:
        return None
    first, last = match.groups()
    if first and last and int(last) < int(first) or not (first or last):
        return None
    if not first:
        span = range(max(0, size - int(last)), size)
    else:
        span = range(int(first), min(int(last) + 1, size) if last else size)
    if not span:
        raise RangeUnsatisfiable(f"the range starts beyond the end, at {size} bytes", size)
    return span
