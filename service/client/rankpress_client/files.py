"""Bytes that are sent and bytes that arrive: paths, bytes and file objects.

A body is read while it is sent, piece by piece, and can be sent more than once. A file object that
cannot be rewound is copied first, to memory or, if it is large, to disk.

An answer goes to memory, to a file or to a file object, whole or not at all. A file is written
under a temporary name in its folder and then renamed. For a file object, and for a path that is no
plain file, the bytes are kept aside until all have arrived.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import secrets
import shutil
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO, Final, cast

BodySource = str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes]
"""What is sent: the path of a file, bytes, or a file object opened for bytes."""

Destination = str | os.PathLike[str] | IO[bytes]
"""Where an answer is written: the path of a file, or a file object opened for bytes."""

PIECE_BYTES: Final = 1 << 18
MEMORY_BYTES: Final = 1 << 20
"""A copy with more bytes is kept on disk."""


class Body:
    """The bytes of a file from where it stands now to its end.

    Attributes:
        size: in bytes.
    """

    def __init__(self, file: IO[bytes]) -> None:
        """Take a file object that can be rewound."""
        self._file, self._start = file, file.tell()
        self.size = file.seek(0, os.SEEK_END) - self._start

    def rewind(self) -> None:
        """Go back to the first byte."""
        self._file.seek(self._start)

    def read(self, size: int) -> bytes:
        """Return the next bytes, one to `size`. Raises OSError: there are none any more."""
        piece = self._file.read(size)
        if not isinstance(piece, bytes):
            raise TypeError(f"the file object gave {type(piece).__name__}, expected bytes")
        if not piece:
            raise OSError("the file became shorter while it was sent")
        return piece


class Pieces:
    """A body as httpx's client for threads takes it; each iteration begins anew."""

    def __init__(self, body: Body, check: Callable[[], None]) -> None:
        """Take a body, and a function that raises an exception when the time is over."""
        self.body, self._check = body, check

    def __iter__(self) -> Iterator[bytes]:
        self.body.rewind()
        remaining = self.body.size
        while remaining:
            self._check()
            piece = self.body.read(min(remaining, PIECE_BYTES))
            remaining -= len(piece)
            yield piece


class AsyncPieces:
    """A body as httpx's client for asyncio takes it; each iteration begins anew."""

    def __init__(self, body: Body, check: Callable[[], None]) -> None:
        """Take a body, and a function that raises an exception when the time is over."""
        self.body, self._check = body, check

    async def __aiter__(self) -> AsyncIterator[bytes]:
        await asyncio.to_thread(self.body.rewind)
        remaining = self.body.size
        while remaining:
            self._check()
            piece = await asyncio.to_thread(self.body.read, min(remaining, PIECE_BYTES))
            remaining -= len(piece)
            yield piece


@contextmanager
def open_body(source: BodySource | None) -> Iterator[Body | None]:
    """Open what is sent; a file object of the caller stays open.

    Raises:
        OSError: the file cannot be opened.
        TypeError: it is nothing that can be sent.
    """
    if source is None:
        yield None
    elif isinstance(source, bytes | bytearray | memoryview):
        yield Body(io.BytesIO(source))
    elif isinstance(source, str | os.PathLike):
        with open(source, "rb") as file, _rewindable(file) as body:
            yield body
    elif hasattr(source, "read"):
        with _rewindable(source) as body:
            yield body
    else:
        raise TypeError(f"found {type(source).__name__}, expected a path, bytes or a file object")


@contextmanager
def _rewindable(file: IO[bytes]) -> Iterator[Body]:
    """Return the body of a file, or of a copy if it is a pipe or the like."""
    if file.seekable():
        yield Body(file)
        return
    with SpooledTemporaryFile(MEMORY_BYTES) as copy:
        shutil.copyfileobj(file, copy, PIECE_BYTES)
        copy.seek(0)
        yield Body(cast(IO[bytes], copy))


class Output:
    """The bytes of an answer while they arrive.

    Attributes:
        size: bytes so far.
    """

    def __init__(self, file: IO[bytes]) -> None:
        """Write to a new file."""
        self._file = file
        self.restart()

    def restart(self) -> None:
        """Drop all bytes."""
        self._file.seek(0)
        self._file.truncate()
        self.size, self._hash = 0, hashlib.sha256()

    def write(self, piece: bytes) -> None:
        """Take the next bytes."""
        self._file.write(piece)
        self._hash.update(piece)
        self.size += len(piece)

    @property
    def sha256(self) -> str:
        """Hash of the bytes so far, in hex."""
        return self._hash.hexdigest()

    @property
    def data(self) -> bytes | None:
        """The bytes so far; None if they are not in memory."""
        return self._file.getvalue() if isinstance(self._file, io.BytesIO) else None

    def commit(self) -> None:
        """Deliver the bytes, which are complete. Raises OSError: they cannot be written."""


class _CopiedOutput(Output):
    """An output that is copied to another file object once it is complete."""

    def __init__(self, file: IO[bytes], target: IO[bytes]) -> None:
        super().__init__(file)
        self._target = target

    def commit(self) -> None:
        self._file.seek(0)
        shutil.copyfileobj(self._file, self._target, PIECE_BYTES)
        self._target.flush()


class _RenamedOutput(Output):
    """An output with a temporary name, which gets its own once it is complete."""

    def __init__(self, file: IO[bytes], temporary: Path, target: Path) -> None:
        super().__init__(file)
        self._temporary, self._path = temporary, target

    def commit(self) -> None:
        self._file.close()
        if self._path.exists():
            shutil.copymode(self._path, self._temporary)
        os.replace(self._temporary, self._path)


@contextmanager
def open_output(into: Destination | None) -> Iterator[Output]:
    """Open an output; nothing of it is left behind unless it was delivered.

    Args:
        into: None for memory.

    Raises:
        OSError: the file's folder cannot be written to.
        TypeError: it is nothing that can be written to.
    """
    if into is None:
        yield Output(io.BytesIO())
    elif isinstance(into, str | os.PathLike):
        with _open_path(Path(os.path.realpath(into))) as output:
            yield output
    elif hasattr(into, "write"):
        with SpooledTemporaryFile(MEMORY_BYTES) as file:
            yield _CopiedOutput(cast(IO[bytes], file), into)
    else:
        raise TypeError(f"found {type(into).__name__}, expected a path or a file object")


@contextmanager
def _open_path(path: Path) -> Iterator[Output]:
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        with path.open("wb") as target, open_output(target) as output:
            yield output
        return
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")  # short: the name may be long
    try:
        with temporary.open("xb") as file:
            yield _RenamedOutput(file, temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
