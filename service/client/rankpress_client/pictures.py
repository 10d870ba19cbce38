"""Pictures by name, which get better while a job works on them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Unpack

from . import calls
from .files import BodySource, Destination
from .options import PictureOptions, PutOptions
from .results import NameVersion, PictureResult, PutResult, StreamResult
from .sending import AsyncSender, Sender


class NamedPictures:
    """The pictures that a server has by name, if it keeps any."""

    def __init__(self, sender: Sender) -> None:
        """Send calls through a sender."""
        self._sender = sender

    def put(self, name: str, source: BodySource, **options: Unpack[PutOptions]) -> PutResult:
        """Compress an image file and give it a name, in place of what the name had.

        With `effort`, a job tries to make a better stream, which the name then has by itself. The
        same put again changes nothing.

        Args:
            name: up to eight parts joined by slashes, such as "blog/cat.jpg".
            source: a path, bytes or a file object.
            options: see `PutOptions`.

        Raises:
            MethodNotAllowedError, NotFoundError: this server lets nobody write, or keeps no names.
        """
        return self._sender.send(calls.put_picture(source, name, options))

    def get(
        self, name: str, into: Destination | None = None, **options: Unpack[PictureOptions]
    ) -> PictureResult:
        """Return what a name has now, in a small format unless options say otherwise.

        Args:
            into: a path or file object to write to; None for memory.
            options: see `PictureOptions`.

        Raises:
            NoSuchPictureError: there is no picture of this name.
        """
        return self._sender.send(calls.named_picture(name, into, options))

    def stream(self, name: str, into: Destination | None = None) -> StreamResult:
        """Return the stream that a name has now.

        Args:
            into: a path or file object to write to; None for memory.

        Raises:
            NoSuchPictureError: there is no picture of this name.
        """
        return self._sender.send(calls.named_stream(name, into))

    def history(self, name: str) -> tuple[NameVersion, ...]:
        """Return the last versions of a name, the present one first; also after a deletion.

        Raises:
            NoSuchPictureError: the name never had a picture.
        """
        return self._sender.send(calls.name_history(name))

    def delete(self, name: str) -> None:
        """Remove the picture of a name.

        Where the answer is lost, this raises TransportError rather than try again: a second
        deletion could remove a picture that was put since.

        Raises:
            NoSuchPictureError: there is no picture of this name.
        """
        self._sender.send(calls.delete_picture(name))

    def list(self, prefix: str = "") -> Iterator[NameVersion]:
        """Yield what all names have that begin with a prefix, in the order of the server's keys."""
        after: str | None = ""
        while after is not None:
            versions, after = self._sender.send(calls.name_page(prefix, after))
            yield from versions


class AsyncNamedPictures:
    """The pictures that a server has by name, if it keeps any."""

    def __init__(self, sender: AsyncSender) -> None:
        """Send calls through a sender."""
        self._sender = sender

    async def put(self, name: str, source: BodySource, **options: Unpack[PutOptions]) -> PutResult:
        """Compress an image file and give it a name, in place of what the name had.

        With `effort`, a job tries to make a better stream, which the name then has by itself. The
        same put again changes nothing.

        Args:
            name: up to eight parts joined by slashes, such as "blog/cat.jpg".
            source: a path, bytes or a file object.
            options: see `PutOptions`.

        Raises:
            MethodNotAllowedError, NotFoundError: this server lets nobody write, or keeps no names.
        """
        return await self._sender.send(calls.put_picture(source, name, options))

    async def get(
        self, name: str, into: Destination | None = None, **options: Unpack[PictureOptions]
    ) -> PictureResult:
        """Return what a name has now, in a small format unless options say otherwise.

        Args:
            into: a path or file object to write to; None for memory.
            options: see `PictureOptions`.

        Raises:
            NoSuchPictureError: there is no picture of this name.
        """
        return await self._sender.send(calls.named_picture(name, into, options))

    async def stream(self, name: str, into: Destination | None = None) -> StreamResult:
        """Return the stream that a name has now.

        Args:
            into: a path or file object to write to; None for memory.

        Raises:
            NoSuchPictureError: there is no picture of this name.
        """
        return await self._sender.send(calls.named_stream(name, into))

    async def history(self, name: str) -> tuple[NameVersion, ...]:
        """Return the last versions of a name, the present one first; also after a deletion.

        Raises:
            NoSuchPictureError: the name never had a picture.
        """
        return await self._sender.send(calls.name_history(name))

    async def delete(self, name: str) -> None:
        """Remove the picture of a name.

        Where the answer is lost, this raises TransportError rather than try again: a second
        deletion could remove a picture that was put since.

        Raises:
            NoSuchPictureError: there is no picture of this name.
        """
        await self._sender.send(calls.delete_picture(name))

    async def list(self, prefix: str = "") -> AsyncIterator[NameVersion]:
        """Yield what all names have that begin with a prefix, in the order of the server's keys."""
        after: str | None = ""
        while after is not None:
            versions, after = await self._sender.send(calls.name_page(prefix, after))
            for version in versions:
                yield version
