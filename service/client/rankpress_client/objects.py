"""Stored streams, by the SHA-256 of their bytes."""

from __future__ import annotations

from typing import Unpack

from . import calls
from .files import BodySource, Destination
from .options import PictureOptions
from .results import PictureResult, StoredStream, StreamResult
from .sending import AsyncSender, Sender


class StoredObjects:
    """The streams that a server keeps, if it keeps any."""

    def __init__(self, sender: Sender) -> None:
        """Send calls through a sender."""
        self._sender = sender

    def picture(
        self, sha256: str, into: Destination | None = None, **options: Unpack[PictureOptions]
    ) -> PictureResult:
        """Return a stored stream as a picture, in a small format unless options say otherwise.

        Args:
            into: a path or file object to write to; None for memory.
            options: see `PictureOptions`.

        Raises:
            NoSuchObjectError: there is no such stream.
        """
        return self._sender.send(calls.object_picture(sha256, into, options))

    def stream(
        self, sha256: str, into: Destination | None = None, first_bytes: int | None = None
    ) -> StreamResult:
        """Return a stored stream; its bytes are checked against the hash.

        Args:
            into: a path or file object to write to; None for memory.
            first_bytes: how many bytes of it; None for all. A beginning cannot be checked.

        Raises:
            NoSuchObjectError: there is no such stream.
        """
        return self._sender.send(calls.object_stream(sha256, into, first_bytes))

    def size_bytes(self, sha256: str) -> int | None:
        """Return the size of a stored stream; None if there is none."""
        return self._sender.send(calls.object_size(sha256))

    def put(self, source: BodySource, sha256: str | None = None) -> StoredStream:
        """Store a stream, after the server has decoded it.

        Args:
            source: a path, bytes or a file object. sha256: hash that the bytes must have, in hex.

        Raises:
            BadStreamError: it cannot be decoded. BadParameterError: it has another hash.
            MethodNotAllowedError: this server lets nobody write.
        """
        return self._sender.send(calls.put_object(source, sha256))


class AsyncStoredObjects:
    """The streams that a server keeps, if it keeps any."""

    def __init__(self, sender: AsyncSender) -> None:
        """Send calls through a sender."""
        self._sender = sender

    async def picture(
        self, sha256: str, into: Destination | None = None, **options: Unpack[PictureOptions]
    ) -> PictureResult:
        """Return a stored stream as a picture, in a small format unless options say otherwise.

        Args:
            into: a path or file object to write to; None for memory.
            options: see `PictureOptions`.

        Raises:
            NoSuchObjectError: there is no such stream.
        """
        return await self._sender.send(calls.object_picture(sha256, into, options))

    async def stream(
        self, sha256: str, into: Destination | None = None, first_bytes: int | None = None
    ) -> StreamResult:
        """Return a stored stream; its bytes are checked against the hash.

        Args:
            into: a path or file object to write to; None for memory.
            first_bytes: how many bytes of it; None for all. A beginning cannot be checked.

        Raises:
            NoSuchObjectError: there is no such stream.
        """
        return await self._sender.send(calls.object_stream(sha256, into, first_bytes))

    async def size_bytes(self, sha256: str) -> int | None:
        """Return the size of a stored stream; None if there is none."""
        return await self._sender.send(calls.object_size(sha256))

    async def put(self, source: BodySource, sha256: str | None = None) -> StoredStream:
        """Store a stream, after the server has decoded it.

        Args:
            source: a path, bytes or a file object. sha256: hash that the bytes must have, in hex.

        Raises:
            BadStreamError: it cannot be decoded. BadParameterError: it has another hash.
            MethodNotAllowedError: this server lets nobody write.
        """
        return await self._sender.send(calls.put_object(source, sha256))
