"""Answers of many bytes: they are sent from a file without a name, within a limit on time.

A picture of 119 bytes of stream may have hundreds of megabytes, and whoever reads it slowly should
not keep that in memory. Only who reads it within the time that a body may take gets all of it.
Where the disk has no room, memory is taken, if that has room.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Mapping
from functools import partial
from typing import IO, Final

from fastapi import Request, Response
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from service.errors import Saturated
from service.http.holds import SPOOLED_BYTES, ClientHold, Spool
from service.http.record import record_of
from service.settings import MIB

PIECE_BYTES: Final = MIB
"""Bytes that are read from the file at a time."""


async def answer(
    request: Request,
    data: bytes,
    headers: Mapping[str, str],
    media_type: str,
    *,
    timeout_s: float,
    status: int = 200,
) -> Response:
    """An answer of these bytes, from a file if they are many.

    Args:
        timeout_s: in which a client has to read it, if they are many.

    Raises:
        Saturated: there is no room for them, on the disk or in memory, for all or for this client.
    """
    if len(data) <= SPOOLED_BYTES:
        return Response(data, status, dict(headers), media_type=media_type)
    hold = record_of(request.scope).hold
    file = await _kept(hold, data)
    length = {"Content-Length": str(len(data))}
    return LargeAnswer(file, hold.spool, timeout_s, status, {**headers, **length}, media_type)


async def _kept(hold: ClientHold, data: bytes) -> IO[bytes]:
    """The bytes as a file, on the disk or in memory."""
    try:
        hold.grow_on_disk(len(data))
        return await hold.spool.do(partial(_write, hold.spool, data))
    except Saturated:
        hold.leave_disk()
    hold.grow(len(data))
    return io.BytesIO(data)


def _write(spool: Spool, data: bytes) -> IO[bytes]:
    file = spool.open()
    try:
        file.write(data)
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file


class LargeAnswer(Response):
    """The bytes of a file, which is closed in the end."""

    def __init__(
        self,
        file: IO[bytes],
        spool: Spool,
        timeout_s: float,
        status: int,
        headers: Mapping[str, str],
        media_type: str,
    ) -> None:
        self._file, self._spool, self._timeout_s = file, spool, timeout_s
        super().__init__(None, status, headers, media_type)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it. Raises ClientDisconnect: the client has not read it in time."""
        del scope, receive
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._send(send)
        except TimeoutError:
            raise ClientDisconnect from None
        finally:
            await self._spool.calls.begin(self._file.close)

    async def _send(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": self.status_code}
        await send(start | {"headers": self.raw_headers})
        while piece := await self._spool.do(partial(self._file.read, PIECE_BYTES)):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
