"""What one request keeps in memory and on disk, counted against everyone's limit and its client's.

A body may take minutes to arrive, or never end. It should not take memory from complete requests
for so long: what has come is in memory at first, then in a file without a name, and only a complete
body is read back.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, Final, TypeVar

from service.engine.admission import Admission
from service.errors import Saturated
from service.http.calls import BlockingCalls
from service.http.clients import RETRY_S, SharedLimit
from service.logs import RareWarning
from service.settings import MIB, Settings

T = TypeVar("T")

SPOOLED_BYTES: Final = MIB
"""Bytes of an incomplete body, or of an answer, that stay in memory."""

SPOOL_THREADS: Final = 4


class Spool:
    """The folder of incomplete bodies, and of large answers until they are read."""

    def __init__(self, settings: Settings) -> None:
        """Nothing is written yet, and the folder is made when something is."""
        self._folder: Path | None = settings.spool
        self._timeout_s = settings.stall_timeout_s
        self.limit = SharedLimit("disk", settings.max_spool_bytes, settings.client_share)
        self.is_off = settings.max_spool_bytes == 0
        self._warn = RareWarning("bodies cannot be kept on disk")
        self.calls = BlockingCalls("spool", SPOOL_THREADS, lambda text: Saturated(text, RETRY_S))

    async def do(self, call: Callable[[], T]) -> T:
        """What a call that uses a file returns. Raises Saturated: the disk is full or slow."""
        try:
            return await self.calls(call, self._timeout_s)
        except OSError as error:
            self._warn(error=str(error))
            raise Saturated("bodies cannot be kept on disk now", RETRY_S) from error

    def open(self) -> IO[bytes]:
        """A new file that vanishes when it is closed. Raises OSError."""
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryFile(dir=self._folder)


class ClientHold:
    """The bytes of one request: its body, on disk and in memory, and its answer.

    Attributes:
        client: whose request it is, see `clients.client_of`. spool: where bodies are kept.
    """

    def __init__(
        self, admission: Admission, memory: SharedLimit, spool: Spool, client: str
    ) -> None:
        self._hold, self._memory, self.client = admission.hold(), memory, client
        self.spool = spool
        self._bytes = self._disk_bytes = 0

    def check(self, more_bytes: int) -> None:
        """Raise QuotaReached if the client would have more than its part of the memory."""
        self._memory.check(self.client, more_bytes, self._bytes)

    def grow(self, more_bytes: int) -> None:
        """Count bytes that arrive.

        Raises:
            Saturated, SelfTestFailed: the client's part or everyone's limit is reached, or the
                server stops; none is counted.
        """
        self.check(more_bytes)
        self._hold.grow(more_bytes)
        self._count(more_bytes)

    def add(self, more_bytes: int) -> None:
        """Count bytes that exist already (an answer), beyond the limit if need be; or no longer."""
        self._hold.add(more_bytes)
        self._count(more_bytes)

    def grow_on_disk(self, more_bytes: int) -> None:
        """Count bytes that will be on disk.

        Raises:
            Saturated: the client's part of the disk or everyone's limit is reached.
        """
        limit = self.spool.limit
        limit.check(self.client, more_bytes, self._disk_bytes)
        if more_bytes > limit.left:
            raise Saturated("too many bytes of bodies are on disk already", RETRY_S)
        limit.take(self.client, more_bytes)
        self._disk_bytes += more_bytes

    def move_to_memory(self) -> None:
        """Count what is on disk as in memory. Raises as `grow`."""
        self.grow(self._disk_bytes)
        self.leave_disk()

    def release(self) -> None:
        """Give all of it back; calling it again does nothing."""
        self._hold.release()
        self._count(-self._bytes)
        self.leave_disk()

    def leave_disk(self) -> None:
        """Count what was on disk no longer."""
        self.spool.limit.take(self.client, -self._disk_bytes)
        self._disk_bytes = 0

    def _count(self, more_bytes: int) -> None:
        self._bytes += more_bytes
        self._memory.take(self.client, more_bytes)


class ArrivingBody:
    """The bytes of a body that have come. Use as a context manager, which drops them."""

    def __init__(self, hold: ClientHold) -> None:
        """No bytes yet, and no file."""
        self._hold, self._spool = hold, hold.spool
        self._memory = io.BytesIO()
        self._file: IO[bytes] | None = None

    def __enter__(self) -> ArrivingBody:
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._spool.calls.begin(self._file.close)

    def write(self, piece: bytes | memoryview) -> None:
        """Take the next bytes, which are counted already, into memory."""
        self._memory.write(piece)

    async def settle(self) -> None:
        """Move to disk what is too much for memory. Raises Saturated: there is no room."""
        if self._memory.tell() < SPOOLED_BYTES or self._spool.is_off:
            return
        piece = self._memory.getbuffer()
        self._hold.grow_on_disk(len(piece))
        self._memory = io.BytesIO()
        if self._file is None:
            self._file = await self._spool.do(self._spool.open)
        self._hold.add(-await self._spool.do(partial(self._file.write, piece)))

    async def read(self) -> bytes:
        """All of it, in memory. Raises as `ClientHold.grow`."""
        if self._file is None:
            return self._memory.getvalue()
        self._hold.move_to_memory()
        return await self._spool.do(partial(_read_back, self._file, self._memory.getvalue()))


def _read_back(file: IO[bytes], rest: bytes) -> bytes:
    """All that was written to a file and what follows it."""
    file.write(rest)
    file.seek(0)
    return file.read()
