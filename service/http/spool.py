"""The folder for request bodies that are still arriving and for large answers being read.

A body may take minutes to arrive, or never end, and a slow client may take as long to read an
answer. Neither should occupy the memory that complete requests need, so these bytes are kept in
files without a name, which vanish when they are closed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import IO, Final, TypeVar

from service.errors import Saturated
from service.http.call_pool import CallPool
from service.http.clients import RETRY_S, SharedLimit
from service.logs import RareWarning
from service.settings import MIB, Settings

T = TypeVar("T")

SPOOLED_BYTES: Final = MIB
"""Bytes of an incomplete body, or of an answer, that may stay in memory."""

SPOOL_THREADS: Final = 4


class Spool:
    """The folder, the limit on what is in it, and the threads that read and write its files.

    Attributes:
        answer_timeout_s: seconds that a client has to read a large answer.
    """

    def __init__(self, settings: Settings) -> None:
        """Write nothing yet; the folder is made when the first file is opened."""
        self._folder = settings.spool
        self._timeout_s = settings.stall_timeout_s
        self.answer_timeout_s = settings.body_timeout_s
        self.limit = SharedLimit("disk", settings.max_spool_bytes, settings.client_share)
        self.is_off = settings.max_spool_bytes == 0
        self._warn = RareWarning("bodies cannot be kept on disk")
        self.calls = CallPool("spool", SPOOL_THREADS, lambda text: Saturated(text, RETRY_S))

    async def run(self, call: Callable[[], T]) -> T:
        """Run a call that uses a file, in a thread. Raises Saturated: the disk is full or slow."""
        try:
            return await self.calls(call, self._timeout_s)
        except OSError as error:
            self._warn(error=str(error))
            raise Saturated("bodies cannot be kept on disk now", RETRY_S) from error

    def open(self) -> IO[bytes]:
        """Open a new file that vanishes when it is closed. Raises OSError."""
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryFile(dir=self._folder)
