"""Files written whole or not at all, and the files of a folder.

A plain file, or a new one, is written under a temporary name in its folder and then renamed. Links
are followed. Other files (a device, a pipe, a descriptor of this process such as /dev/stdout) are
written to and never replaced.

All readers of folders of pictures list them here. Links to folders are followed, names that begin
with a dot are left out, and whatever else is left out is reported.
"""

from __future__ import annotations

import errno
import gzip
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from service.errors import BadParameter

IMAGE_SUFFIXES: Final = frozenset(
    ".apng .arw .avif .bmp .cr2 .cr3 .dng .exr .gif .hdr .heic .heif .hif .j2c .j2k .jfif .jp2 "
    ".jpe .jpeg .jpf .jpg .jpx .jxl .jxr .mpo .nef .orf .pam .pbm .pgm .png .pnm .ppm .qoi .raf "
    ".rw2 .tga .tif .tiff .wdp .webp".split()
)
"""Suffixes of pictures in folders; files of kinds that cannot be read fail with the reason."""

STREAM_SUFFIX: Final = ".rkp"
"""Suffix of streams."""

SITE: Final = Path(__file__).parent / "docs" / "site"
"""Folder of the built pages: `python -m service.bench.site` fills it, and a server shows it."""

GZIP_LEVEL: Final = 6
"""The decode-only file of the shipped model becomes 23 % smaller in 0.3 s, at level 9 too."""

MIN_GAIN: Final = 1 / 8
"""Share that gzip must save: with less, a file is not kept in a second form."""

_STANDARD: Final = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}
_DESCRIPTOR: Final = re.compile(r"/(?:dev|proc/(?:self|thread-self|\d+))/fd/(\d{1,9})")


@dataclass(frozen=True)
class Listing:
    """The files of a folder and of the folders in it.

    Attributes:
        files: in order of their paths, including broken links: reading them raises the reason.
        unreadable: an error for each folder that could not be listed; `filename` is its name.
        skipped: paths that are no plain file or folder, with the reason.
    """

    files: tuple[Path, ...]
    unreadable: tuple[OSError, ...]
    skipped: tuple[tuple[Path, str], ...]


def list_folder(folder: Path) -> Listing:
    """List a folder and all folders below it; hidden names are left out."""
    files: list[Path] = []
    unreadable: list[OSError] = []
    skipped: list[tuple[Path, str]] = []
    pending: list[tuple[Path, frozenset[tuple[int, int]]]] = [(folder, frozenset())]
    while pending:
        place, parents = pending.pop()
        try:
            status = place.stat()
            names = [name for name in os.listdir(place) if not name.startswith(".")]
        except OSError as error:
            unreadable.append(error)
            continue
        here = status.st_dev, status.st_ino
        if here in parents:
            skipped.append((place, "is a link to one of its parent folders"))
            continue
        for path in (place / name for name in names):
            kind = _kind_of(path)
            if stat.S_ISDIR(kind):
                pending.append((path, parents | {here}))
            elif stat.S_ISREG(kind):
                files.append(path)
            else:
                skipped.append((path, "is no plain file"))
    return Listing(tuple(sorted(files)), tuple(unreadable), tuple(sorted(skipped)))


def walk_in_order(
    folder: Path, on_skip: Callable[[str], None], after: str = ""
) -> Iterator[tuple[str, int]]:
    """Yield the files of a folder and of all folders below it, in the order of their keys.

    A key is the path in the folder, its parts separated by slashes; keys are in the order in which
    buckets list them. The names of one folder and of its parents are in memory at a time.

    Args:
        folder: to walk. after: a key; only files whose keys come after it are yielded.
        on_skip: is called with the kind of each entry that is left out.

    Yields:
        The key of each file, and its size in bytes, which is 0 for a broken link.
    """

    def walk(below: str, parents: frozenset[tuple[int, int]]) -> Iterator[tuple[str, int]]:
        try:
            status = os.stat(folder / below)
            names = os.listdir(folder / below)
        except OSError:
            on_skip("folders that cannot be listed")
            return
        here = status.st_dev, status.st_ino
        if here in parents:
            on_skip("links to a parent folder")
            return
        for name in sorted(_typed_names(folder / below, names, on_skip)):
            key = below + name
            if not name.endswith("/"):
                if key > after:
                    yield key, _size_of(folder / key)
            elif key > after or after.startswith(key):
                yield from walk(key, parents | {here})

    return walk("", frozenset())


def _typed_names(
    place: Path, names: Iterable[str], on_skip: Callable[[str], None]
) -> Iterator[str]:
    """Yield the names of plain files, and those of folders with a slash at the end."""
    for name in names:
        kind = _kind_of(place / name)
        if name.startswith("."):
            on_skip("hidden names")
        elif name.encode("utf-8", "replace") != os.fsencode(name):
            on_skip("names that are no UTF-8")
        elif stat.S_ISDIR(kind):
            yield name + "/"
        elif stat.S_ISREG(kind):
            yield name
        else:
            on_skip("no plain files")


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # reading the file raises the reason
        return 0


def files_in(folder: Path) -> tuple[Path, ...]:
    """Return the files of a folder and of all folders below it, in order, hidden names left out.

    Raises:
        BadParameter: it is no folder. OSError: it, or a folder below it, cannot be listed.
    """
    if not folder.is_dir():
        raise BadParameter(f"{folder} is not a folder of pictures")
    listing = list_folder(folder)
    for error in listing.unreadable:
        raise error
    return listing.files


def _kind_of(path: Path) -> int:
    """Return the mode of a path's target; that of a plain file for a broken link."""
    try:
        return path.stat().st_mode
    except OSError:
        return stat.S_IFREG


def descriptor_of(path: Path) -> int | None:
    """Return the descriptor of this process that a path names; None if it names none."""
    text = str(path)
    match = _DESCRIPTOR.fullmatch(text)
    if match is None:
        return _STANDARD.get(text)
    process = text.split("/")[2]
    own = not process.isdigit() or int(process) == os.getpid()
    return int(match[1]) if own else None


def write_whole(path: Path, data: bytes, *, sync: bool = False) -> None:
    """Write a file whole or not at all, see `whole_file`."""
    with whole_file(path, sync=sync) as file:
        file.write(data)


@contextmanager
def whole_file(path: Path, *, sync: bool = False) -> Iterator[BinaryIO]:
    """Open a file to write; it gets its name when the block ends without an error.

    Missing folders are made. A file that replaces another keeps its mode, and its owner where that
    is allowed.

    Args:
        path: of the file. sync: whether to wait until a plain file's bytes are on the disk.

    Raises:
        OSError: the system refuses an operation.
    """
    descriptor = descriptor_of(path)
    if descriptor is not None:
        with os.fdopen(os.dup(descriptor), "wb") as stream:
            yield stream
        return
    old = _status(path)
    if old is not None and not stat.S_ISREG(old.st_mode):
        with path.open("wb") as stream:
            yield stream
        return
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")  # short: the name may be long
    mode = 0o666 if old is None else 0o600
    try:
        with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            if old is not None:
                _copy_owner_and_mode(temporary, target, old)
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def smaller_gzip(data: bytes) -> bytes | None:
    """Return the data in gzip, always the same bytes; None where that saves less than MIN_GAIN."""
    packed = gzip.compress(data, GZIP_LEVEL, mtime=0)
    return packed if len(packed) <= (1 - MIN_GAIN) * len(data) else None


def check_target(path: Path, *, overwrite: bool) -> None:
    """Check, before any work is done, that `whole_file` could write a file.

    Args:
        path: of the file to write. overwrite: whether an existing file may be replaced.

    Raises:
        FileExistsError: there is a file, or a disk, and it may not be overwritten.
        OSError: the path is a folder or a socket, its name is too long, or the file or its folder
            is not writable.
    """
    descriptor = descriptor_of(path)
    if descriptor is not None:
        os.write(descriptor, b"")  # fails where it is closed, or open to read alone
        return
    old, target = _status(path), Path(os.path.realpath(path))
    if old is None:
        _check_access(_nearest_folder(target))
        return
    if stat.S_ISDIR(old.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder, expected a file", str(path))
    if stat.S_ISSOCK(old.st_mode):
        raise OSError(errno.ENXIO, "it is a socket, expected a file or a pipe", str(path))
    if not overwrite and (stat.S_ISREG(old.st_mode) or stat.S_ISBLK(old.st_mode)):
        raise FileExistsError(errno.EEXIST, "it exists; --overwrite replaces it", str(path))
    _check_access(target.parent if stat.S_ISREG(old.st_mode) else path)


def _status(path: Path) -> os.stat_result | None:
    """Return the status of a file; None if there is no file."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _nearest_folder(target: Path) -> Path:
    """Return the nearest existing folder above a new file; check the names below that folder.

    Raises:
        OSError: a name is too long for its file system, or a parent is no folder.
    """
    folder = next(parent for parent in target.parents if parent.exists())
    for name in target.relative_to(folder).parts:
        with suppress(FileNotFoundError):
            (folder / name).lstat()
    return folder


def _check_access(place: Path) -> None:
    if not os.access(place, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(place))


def _copy_owner_and_mode(temporary: Path, target: Path, old: os.stat_result) -> None:
    """Give a temporary file, still empty, the owner and mode of the file that it will replace."""
    with suppress(OSError):
        os.chown(temporary, old.st_uid, old.st_gid)
    shutil.copymode(target, temporary)
