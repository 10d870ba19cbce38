"""Where the files of a run come from: a folder, or a bucket, listed in the order of their keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final, Protocol

from service.blobs import BUCKETS, Objects, open_objects
from service.bulk.shards import RUN_FOLDER
from service.errors import BadParameter, ObjectsUnavailable, RankpressError
from service.files import IMAGE_SUFFIXES, STREAM_SUFFIX, walk_in_order

MOST_KINDS: Final = 50
"""Kinds of files that are counted apart from one another."""

OnSkip = Callable[[str], None]


@dataclass(frozen=True)
class SourceFile:
    """A file of a source: its key and its size in bytes when it was listed."""

    key: str
    size_bytes: int


class FileSource(Protocol):
    """A folder or bucket of files."""

    def files(self, on_skip: OnSkip, after: str = "") -> Iterator[SourceFile]:
        """Yield the files in the order of their keys, those after a key.

        `on_skip` is called with the kind of each entry that cannot be a file of a run.
        """

    def read(self, key: str) -> bytes:
        """Return the bytes of a file. Raises RankpressError or OSError."""

    def has(self, key: str) -> bool:
        """Return whether there is such a file."""

    def check(self) -> None:
        """Raise ObjectsUnavailable if no file can be read, whatever its key."""


class FolderSource:
    """The files below a folder. Names that begin with a dot are left out."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def files(self, on_skip: OnSkip, after: str = "") -> Iterator[SourceFile]:
        for key, size_bytes in walk_in_order(self._folder, on_skip, after):
            yield SourceFile(key, size_bytes)

    def read(self, key: str) -> bytes:
        return (self._folder / key).read_bytes()

    def has(self, key: str) -> bool:
        return (self._folder / key).exists()

    def check(self) -> None:
        if not self._folder.is_dir():
            raise ObjectsUnavailable(f"the source {self._folder} is no folder any more")


class BucketSource:
    """The objects of a bucket, or below a prefix of one."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def files(self, on_skip: OnSkip, after: str = "") -> Iterator[SourceFile]:
        for info in self._objects.list_sorted("", after):
            if any(part.startswith(".") for part in info.key.split("/")):
                on_skip("hidden names")
            else:
                yield SourceFile(info.key, info.size_bytes)

    def read(self, key: str) -> bytes:
        return self._objects.get(key)

    def has(self, key: str) -> bool:
        return self._objects.head(key) is not None

    def check(self) -> None:
        next(self._objects.list(""), None)


def open_source(place: str, timeout_s: float) -> FileSource:
    """Open a source that exists.

    Args:
        place: folder or URL. timeout_s: see `open_objects`.

    Raises:
        BadParameter: it is no folder, or a URL of another scheme.
        ObjectsUnavailable: it cannot be opened.
    """
    folder = folder_of(place)
    if folder is None:
        return BucketSource(open_objects(place, timeout_s))
    if not folder.is_dir():
        raise BadParameter(f"SOURCE is {place}, expected a folder or the URL of a bucket")
    return FolderSource(folder)


def absolute_place(place: str) -> str:
    """Return a place as any process can open it, in one spelling."""
    folder = folder_of(place)
    return place.rstrip("/") if folder is None else str(folder)


def check_apart(source: str, dest: str) -> None:
    """Raise BadParameter if the destination lies in the source: its results would be listed."""
    if f"{absolute_place(dest)}/".startswith(f"{absolute_place(source)}/"):
        raise BadParameter(f"DEST is {dest}, expected a place outside of SOURCE, {source}")


def folder_of(place: str) -> Path | None:
    """Return the folder that a place is, with links resolved; None for the URL of a bucket.

    Raises:
        BadParameter: it is a URL of another scheme.
    """
    scheme, separator, rest = place.partition("://")
    if not separator or scheme == "file":
        return Path(rest if separator else place).resolve()
    if scheme not in BUCKETS:
        known = ", ".join(f"{s}://" for s in ("file", *BUCKETS))
        raise BadParameter(f"{place} is of another scheme, expected a folder or one of {known}")
    return None


def select(files: Iterator[SourceFile], on_skip: OnSkip, streams: bool) -> Iterator[SourceFile]:
    """Yield the files that a run works on: pictures by their suffix, and streams if asked for.

    What a run has written about itself is left out without a word, and files of other kinds are
    passed to `on_skip` by their suffix.
    """
    suffixes = IMAGE_SUFFIXES | ({STREAM_SUFFIX} if streams else frozenset())
    for file in files:
        if file.key.startswith(f"{RUN_FOLDER}/"):
            continue
        suffix = PurePosixPath(file.key).suffix.lower()
        if any(ord(c) < 32 or ord(c) == 127 for c in file.key):
            on_skip("names with control characters")  # no store takes them
        elif suffix in suffixes:
            yield file
        else:
            on_skip(suffix or "no suffix")


def read_checked(source: FileSource, file: SourceFile, most_bytes: int) -> bytes:
    """Return the bytes of a file that is not larger than any picture within the limit.

    Raises:
        RankpressError: it is larger, or cannot be read. OSError: likewise.
    """
    if file.size_bytes > most_bytes:
        raise RankpressError(
            f"the file has {file.size_bytes} bytes, more than the {most_bytes} that a picture "
            "within max_pixels can need"
        )
    return source.read(file.key)
